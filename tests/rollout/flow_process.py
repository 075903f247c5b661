"""A release flow as a process of its own, for tests that kill it: begins and advances for ever.

Arguments: ledger URL, control plane URL, candidate as JSON, lease in seconds.
"""

import sys
import time

import msgspec

from core.contracts import CanaryDecision, Candidate
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan


def main(ledger_url: str, kube_url: str, candidate: str, lease_seconds: str) -> None:
    conductor = Conductor(Ledger(ledger_url), KubernetesClient(kube_url), "flow")
    plan = ReleasePlan(
        shares=(5, 50, 100),
        step_seconds_min=0,
        step_requests_min=0,
        lease_seconds=float(lease_seconds),
    )
    proposed = conductor.propose(msgspec.json.decode(candidate, type=Candidate), plan)
    release = conductor.start(proposed.release_id)
    while not release.final:
        release = conductor.advance(release.release_id, CanaryDecision("continue", "for ever", 1))
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])

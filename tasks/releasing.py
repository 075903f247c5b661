"""One candidate's way to stable: every step goes through the conductor, the only writer."""

import os
import socket
from dataclasses import dataclass

from core.settings import Settings
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.release import HELD_STATES

__all__ = ["HELD_STATES"]
POLL_SECONDS_MIN = 0.2
ROLLBACK_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate in the ledger; `active` is false while another release is running."""

    release_id: str
    active: bool


def open_conductor() -> Conductor:
    """Connect to the ledger and the cluster's API as this process."""
    settings = Settings.read()
    holder = f"{socket.gethostname()}-{os.getpid()}"
    return Conductor(Ledger(settings.ledger_url), KubernetesClient(settings.kube_url), holder)

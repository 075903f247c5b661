"""Seeded storms: several processes, lost and late answers, a lagging control plane, operators.

Whatever happens, no traffic ever goes to a revision that is not ready, and once the storm is over
and the keeper has looked, one consistent outcome remains.
"""

import copy
import itertools
import random
import time
from pathlib import Path
from typing import Any

import pytest
from release_scenarios import CONTINUE, INCONCLUSIVE, PROMOTE, ROLL_BACK, SERVICE, candidate, plan

from core.contracts import ReleaseState
from core.errors import ConflictError, NotFoundError, SerinError, UnavailableError
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.inference_service import Body
from rollout.keeper import ORPHAN_SECONDS, Keeper
from rollout.ledger import Ledger
from rollout.release import HELD_STATES

ACTIONS = 60
CALM_MAX = 200
DECISIONS = (None, CONTINUE, CONTINUE, PROMOTE, PROMOTE, PROMOTE, ROLL_BACK, INCONCLUSIVE)


class StormyServices:
    """Some writes arrive without an answer, some arrive later than they were given up."""

    def __init__(self, inner: FakeInferenceServices, chance: random.Random) -> None:
        self.inner = inner
        self.chance = chance
        self.calm = False
        self.late: list[tuple[str, tuple[Any, ...]]] = []

    def get(self, namespace: str, name: str) -> Body | None:
        if not self.calm and self.chance.random() < 0.03:
            raise UnavailableError("no answer")
        return self.inner.get(namespace, name)

    def create(self, namespace: str, body: Body) -> Body:
        return self._write("create", namespace, body) or {}

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        return self._write("patch", namespace, name, body) or {}

    def delete(self, namespace: str, name: str, uid: str) -> None:
        self._write("delete", namespace, name, uid)

    def deliver(self) -> None:
        """Let one late write arrive."""
        if self.late:
            method, arguments = self.late.pop(self.chance.randrange(len(self.late)))
            try:
                getattr(self.inner, method)(*arguments)
            except (ConflictError, NotFoundError):
                return  # fenced off

    def _write(self, method: str, *arguments: Any) -> Body | None:
        luck = 1.0 if self.calm else self.chance.random()
        if luck < 0.1:
            self.late.append((method, copy.deepcopy(arguments)))
            raise UnavailableError("given up")
        answer: Body | None = getattr(self.inner, method)(*arguments)
        if luck < 0.2:
            raise UnavailableError("the answer was lost")
        return answer


class Storm:
    """The processes and what may happen to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ledger = Ledger(f"sqlite:///{folder}/{seed}.db")
        self.fake = FakeInferenceServices(lag=self.chance.random() < 0.7)
        self.services = StormyServices(self.fake, self.chance)
        self.lease_seconds = self.chance.choice((0.005, 0.05, 60))
        self.versions = itertools.count(1)
        self.names = itertools.count(1)
        self.ticks = itertools.count()
        self.flow = self.conductor("flow")
        self.keeper = self.new_keeper()

    def conductor(self, holder: str) -> Conductor:
        return Conductor(self.ledger, self.services, holder, sleep=lambda _: self.fake.reconcile())

    def new_keeper(self) -> Keeper:
        """Each look of it is so much later that it also looks for orphans."""
        own = self.conductor(f"keeper-{next(self.names)}")
        return Keeper(self.ledger, own, monotonic=lambda: next(self.ticks) * ORPHAN_SECONDS)

    def act(self) -> None:
        """Do one thing at random; errors of our own tree are part of the weather."""
        actions = (
            (self.advance, 10), (self.fake.reconcile, 8), (self.propose, 2), (self.tick, 1),
            (self.operator, 1), (self.new_flow, 1), (self.new_version_fails, 1), (self.heal, 3),
            (self.services.deliver, 2), (self.kubectl, 0.3),
        )  # fmt: skip
        action = self.chance.choices([a for a, _ in actions], [w for _, w in actions])[0]
        try:
            action()
        except SerinError:
            return

    def advance(self) -> None:
        for release, _ in self.ledger.all_active():
            if release.state is ReleaseState.AWAITING_APPROVAL:
                answer = self.chance.choice((self.flow.approve, self.flow.reject))
                answer(release.release_id, "ann")
            self.flow.advance(release.release_id, self.chance.choice(DECISIONS))

    def propose(self) -> None:
        waiting = self.flow.next_waiting(SERVICE)
        if waiting is None:
            body = self.fake.get("default", SERVICE)
            env = body["spec"]["predictor"]["model"]["env"] if body else []
            stable = env[0]["value"] if env else None
            given = candidate(f"{next(self.versions):x}", stable)
            needed = self.chance.choice(("auto", "auto", "required"))
            shares = self.chance.choice(((5, 50, 100), (0, 5, 50, 100)))
            wanted = plan(approval=needed, lease_seconds=self.lease_seconds, shares=shares)
            waiting = self.flow.propose(given, wanted)
        self.flow.start(waiting.release_id)

    def tick(self) -> None:
        time.sleep(0.005)
        self.keeper.tick()

    def operator(self) -> None:
        own = self.conductor(f"cli-{next(self.names)}")
        own.roll_back_service(SERVICE, "ann", "a feeling", wait_seconds=0.01)

    def new_flow(self) -> None:
        self.flow = self.conductor(self.chance.choice(("flow", f"flow-{next(self.names)}")))
        if self.chance.random() < 0.5:
            self.keeper = self.new_keeper()

    def new_version_fails(self) -> None:
        version = candidate(f"{next(self.versions):x}")
        self.fake.behaviour[version.bundle_digest] = self.chance.choice(("failed", "loading"))

    def heal(self) -> None:
        for bundle in self.fake.behaviour:
            self.fake.behaviour[bundle] = "ready"

    def kubectl(self) -> None:
        """Somebody interferes with a running release; a service without one is his own affair."""
        if not any(release.state in HELD_STATES for release, _ in self.ledger.all_active()):
            return
        percent = self.chance.choice((0, None))
        body = {"spec": {"predictor": {"canaryTrafficPercent": percent}}}
        self.fake.patch("default", SERVICE, body)

    def calm_down(self) -> None:
        """The weather clears; late writes still arrive; only the keeper is left."""
        self.services.calm = True
        self.heal()
        for _ in range(CALM_MAX):
            self.services.deliver()
            self.fake.reconcile()
            for release, _ in self.ledger.all_active():
                if release.state is ReleaseState.AWAITING_APPROVAL:
                    self.conductor("cli").reject(release.release_id, "bob")
            time.sleep(0.005)
            if not self.keeper.tick() and not self.services.late:
                break
        self.fake.reconcile()
        self.keeper.tick()


def check(storm: Storm) -> None:
    ledger, fake = storm.ledger, storm.fake
    assert ledger.all_active() == []
    assert ledger.verify() == []
    weights = fake.weights("default", SERVICE)
    body = fake.get("default", SERVICE)
    assert body is None or "canaryTrafficPercent" not in body["spec"]["predictor"]
    assert body is None or sum(weights.values()) == 100
    stable = ledger.stable(SERVICE)
    assert weights == ({stable.candidate.bundle_digest: 100} if stable else {})
    told = ledger.serving_at(SERVICE, time.time() + 1)
    assert {share.bundle_digest: share.percent for share in told} == weights


def run(folder: Path, seed: int) -> None:
    storm = Storm(folder, seed)
    try:
        for _ in range(ACTIONS):
            storm.act()
        storm.calm_down()
        check(storm)
    except Exception as error:
        for event in storm.ledger.last_events(60):
            error.add_note(f"{event.release_id} {event.kind} {event.state} {event.body}"[:300])
        raise
    finally:
        storm.ledger.close()


@pytest.mark.parametrize("seed", range(12))
def test_a_storm_leaves_one_consistent_outcome(seed: int, fast_folder: Path) -> None:
    run(fast_folder, seed)


@pytest.mark.slow
def test_many_storms_leave_one_consistent_outcome(fast_folder: Path) -> None:
    for seed in range(1000, 1200):
        run(fast_folder, seed)

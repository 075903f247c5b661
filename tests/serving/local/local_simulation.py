"""The pure plan carried out on values only: no process, no clock, no file but bundle folders."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.local.config import LocalConfig
from serving.local.objects import merge_patch
from serving.local.reconcile import (
    Plan,
    ProcessView,
    Routes,
    Signal,
    Slot,
    SlotView,
    World,
    reconcile,
)
from serving.local.revisions import Failure, ServiceState

if TYPE_CHECKING:
    from tests.serving.local.local_plane import model
else:
    from local_plane import model

UID = "11111111-2222-3333-4444-555555555555"


class Simulation:
    """One service whose processes are values that the test moves."""

    def __init__(self, roots: Path, **config: Any) -> None:
        self.roots = roots
        self.config = LocalConfig(**config)
        self.now = 0.0
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.states: dict[str, ServiceState] = {}
        self.processes: dict[Slot, ProcessView] = {}
        self.slots: dict[Slot, SlotView] = {}
        self.loading_since: dict[tuple[str, str], float] = {}
        self.routes: Routes = {}
        self.gateway_follows = True
        self.signals: list[Signal] = []

    @property
    def key(self) -> tuple[str, str]:
        return ("default", "assistant")

    @property
    def state(self) -> ServiceState:
        return self.states[UID]

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.objects[self.key]["status"]
        return found

    def create(self, version: str = "1", **predictor: Any) -> None:
        """Add the service, serving model `version`."""
        metadata = {"name": "assistant", "namespace": "default", "uid": UID}
        spec = {"predictor": {**predictor, "model": self.model(version)}}
        self.objects[self.key] = {"metadata": metadata, "spec": spec}
        self.settle()

    def model(self, version: str) -> dict[str, Any]:
        folder = self.roots / f"bundle-{version}"
        folder.mkdir(exist_ok=True)
        return model(f"file://{folder}", version)

    def patch(self, version: str | None = None, **predictor: Any) -> None:
        """One merge patch below spec.predictor, with another model if a version is given."""
        if version is not None:
            predictor["model"] = self.model(version)
        self.objects[self.key] = merge_patch(
            self.objects[self.key], {"spec": {"predictor": predictor}}
        )
        self.settle()

    def annotate(self, **annotations: str | None) -> None:
        self.objects[self.key] = merge_patch(
            self.objects[self.key], {"metadata": {"annotations": annotations}}
        )
        self.settle()

    def world(self) -> World:
        return World(
            now=self.now,
            timestamp=f"2026-11-22T00:00:{int(self.now) % 60:02d}Z",
            objects=self.objects,
            states=self.states,
            processes=list(self.processes.values()),
            slots=self.slots,
            loading_since=self.loading_since,
            routes=self.routes,
            routes_applied=self.gateway_follows,
            bundle_roots=[self.roots],
            gateway_url="http://127.0.0.1:8800",
        )

    def settle(self) -> None:
        """Carry plans out until nothing changes."""
        for _ in range(20):
            before = (self.states, self.routes, dict(self.processes), dict(self.objects))
            self.carry_out(reconcile(self.world(), self.config))
            if before == (self.states, self.routes, self.processes, self.objects):
                return
        raise AssertionError("the plans do not come to rest")

    def carry_out(self, plan: Plan) -> None:
        self.states, self.routes = plan.states, plan.routes
        for state in plan.states.values():
            for name in state.revisions:
                self.loading_since.setdefault((state.uid, name), self.now)
        for key, status in plan.statuses.items():
            self.objects[key] = {**self.objects[key], "status": status}
        for action in plan.signals:
            self.signals.append(action)
            slot = next(s for s, v in self.processes.items() if v.process_id == action.process_id)
            if action.kind == "unroute":
                self.processes[slot] = replace(self.processes[slot], unrouted_at=self.now)
            elif action.kind == "terminate":
                self.processes[slot] = replace(
                    self.processes[slot], ready=False, terminated_at=self.now
                )
            else:
                self.processes[slot] = replace(self.processes[slot], ready=False, killed=True)
        for start in plan.starts:
            name, index = start.slot.revision, start.slot.index
            url = f"http://127.0.0.1:{10000 + start.revision.number * 10 + index}"
            self.processes[start.slot] = ProcessView(
                f"{name}-{index}", start.slot, url, ready=False, started_at=self.now
            )

    def at(self, seconds: float) -> None:
        """Let time pass; processes that were ready keep answering so."""
        self.now = seconds
        for slot, process in self.processes.items():
            if process.ready:
                self.processes[slot] = replace(process, ready_at=self.now)
        self.settle()

    def slot(self, number: int, index: int = 0) -> Slot:
        return Slot(UID, f"assistant-{number:05d}", index)

    def ready(self, number: int, index: int = 0, digest: str = "") -> None:
        """Let the process of a revision become ready."""
        slot = self.slot(number, index)
        self.processes[slot] = replace(
            self.processes[slot],
            ready=True,
            ready_at=self.now,
            bundle_digest=digest or f"{number:064d}",
        )
        self.settle()

    def exits(self, number: int, times: int = 1, index: int = 0) -> None:
        """Let the process of a revision end by itself, for the `times`-th time in a row."""
        slot = self.slot(number, index)
        self.processes.pop(slot, None)
        failure = Failure("exit code 3: no weights", "2026-11-22T00:00:00Z", 3)
        self.slots[slot] = SlotView(times, failure, self.now + 1)
        self.settle()

    def ended(self, number: int, index: int = 0) -> None:
        """Let a process that was told to stop end."""
        del self.processes[self.slot(number, index)]
        self.settle()

    def traffic(self) -> list[tuple[int, int, str]]:
        """Return status.traffic as (revision number, percent, latest or prev)."""
        entries = self.status["components"]["predictor"].get("traffic", ())
        return [
            (
                int(entry["revisionName"][-5:]),
                entry["percent"],
                "latest" if entry["latestRevision"] else entry["tag"],
            )
            for entry in entries
        ]

    def revisions(self) -> tuple[int, int, int, int]:
        """Return the numbers of latest created, latest ready, rolled out, rolled out before."""
        component = self.status["components"]["predictor"]
        names = ("latestCreated", "latestReady", "latestRolledout", "previousRolledout")
        found = [component.get(f"{name}Revision", "-00000") for name in names]
        return (int(found[0][-5:]), int(found[1][-5:]), int(found[2][-5:]), int(found[3][-5:]))

    def condition(self, kind: str = "Ready") -> tuple[str, str]:
        for entry in self.status["conditions"]:
            if entry["type"] == kind:
                return entry["status"], entry.get("reason", "")
        raise AssertionError(f"no condition {kind}")

    def arms(self) -> list[tuple[str, int, int]]:
        """Return (arm, revision number, percent) of the routes."""
        return [
            (arm["arm"], int(arm["revision"][-5:]), arm["percent"])
            for arm in self.routes["assistant"]["arms"]
        ]

    def running(self) -> list[int]:
        """Return the revision numbers of processes that were not told to stop."""
        return sorted(
            int(slot.revision[-5:])
            for slot, process in self.processes.items()
            if process.terminated_at is None and not process.killed
        )

"""One machine with real predictors under load, a watch beside it, and what clients see of both."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from core.contracts import CanaryDecision
from core.manifests import MANIFEST_NAME, read_manifest, write_manifest
from observability.load import CHAT_PATH, LoadConfig, LoadGenerator
from rollout.events import Event
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from serving.engines.faults import control_file
from tasks.remembering import Notes
from tests.one_machine import LONG_SECONDS, OneMachine, until
from validation.health_config import DEFAULT_ROWS, HealthConfig

STRANGER = "127.0.0.9"
"""The address of a client that is not exempt from bans."""
KEY, EVALUATOR = "k" * 32, "e" * 32
PROMPT = "Where is my parcel?"
PROMOTE = CanaryDecision("promote", "the test says so", canary_requests=1000)
GATEWAY = {
    "prompt_share": 1.0,
    "guard": {
        "ban_exempt": ["127.0.0.1/32"],
        "ban_strikes_per_minute": 10_000,
        "input_long_share_max": 1.0,
        "input_requests_min": 10,
    },
}
"""The gateway's own reactions are off, so that the matrix must react."""
CHANGES = ("health_act", "health_escalate", "health_undo")
CALM_LOOKS = 8
"""Looks after an undo in which a row must not act again."""


@dataclass(frozen=True)
class DrillRow:
    """One line of the table."""

    row: str
    fault: str
    recovery: str
    seconds_to_detect: float
    seconds_to_recover: float | None
    """None where clients see nothing of the recovery: an alarm."""
    failed: int
    sent: int


DRILL: list[DrillRow] = []


class HealthWorld:
    """Version 1 and 2 are released; every further version is a copy of the same bundle."""

    def __init__(self, home: Path, bundle: Path) -> None:
        self.home = home
        os.environ["SERIN_ALLOW_FAULTS"] = "1"
        self.machine = OneMachine(home)
        self.ledger: Ledger
        self.load: LoadGenerator
        self.version = 0
        self._bundle = bundle
        # Making a client loads certificates: one for all, closed at the end.
        self._http = httpx.Client(trust_env=False, verify=False, timeout=60)
        self._watch: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}

    def begin(self) -> None:
        """Start everything, release two versions, and begin to ask."""
        (self.home / "gateway.yaml").write_text(json.dumps(GATEWAY))
        hashed = {name: hashlib.sha256(name.encode()).hexdigest() for name in (KEY, EVALUATOR)}
        (self.home / "keys.yaml").write_text(json.dumps({"web": {"sha256": hashed[KEY]}}))
        (self.home / "feedback.yaml").write_text(json.dumps({"labels": hashed[EVALUATOR]}))
        self.machine.start()
        self.ledger = Ledger(self.machine.ledger_url)
        self.promote()
        self.promote()
        self.load = self.new_load(rps=10)
        self.load.start()

    def new_load(self, **config: Any) -> LoadGenerator:
        """Return a load of allowed requests, not started."""
        given = {"rps": 10, "max_tokens": 4, "arrivals": "uniform", **config}
        headers = {"Authorization": f"Bearer {KEY}"}
        settings = LoadConfig(
            url=self.machine.gateway_url, model=self.machine.service, headers=headers, **given
        )
        return LoadGenerator(settings, [PROMPT])

    def end(self) -> None:
        """Stop everything."""
        self.stop_watch()
        if hasattr(self, "load"):
            self.load.stop()
        self.machine.stop()
        self._http.close()
        if hasattr(self, "ledger"):
            self.ledger.close()
        os.environ.pop("SERIN_ALLOW_FAULTS", None)

    def bundle(self) -> Path:
        """Make another bundle of the same content, with an identity of its own."""
        draft = self.home / "bundles" / f"draft-{self.version}"
        shutil.copytree(self._bundle, draft, copy_function=os.link)
        manifest = replace(read_manifest(draft), snapshot_id=f"version-{self.version}")
        (draft / MANIFEST_NAME).unlink()
        write_manifest(draft, manifest)
        return draft.rename(draft.with_name(manifest.digest))

    def promote(self, **plan: Any) -> Release:
        """Make the next version stable; with other shares, as far as they say."""
        found = self.propose(**plan)
        conductor = self.machine.conductor(self.ledger, "earlier")
        conductor.start(found.release_id)

        def ended() -> Release | None:
            moved = conductor.advance(found.release_id, PROMOTE)
            return moved if moved.final else None

        done = until(ended, f"version {self.version}", 2 * LONG_SECONDS)
        assert done is not None
        assert done.state == "PROMOTED", done.reason
        return done

    def propose(self, **plan: Any) -> Release:
        """Propose the next version."""
        stable = self.stable()
        self.version += 1
        quick = {"shares": (50, 100), "step_seconds_min": 0, "step_requests_min": 0}
        candidate = self.machine.candidate(str(self.version), stable, self.bundle())
        conductor = self.machine.conductor(self.ledger, "earlier")
        return conductor.propose(candidate, ReleasePlan(**{**quick, **plan}))

    def stable(self) -> str | None:
        """The version that is stable by the ledger."""
        found = self.ledger.stable(self.machine.service)
        return found.candidate.model_version if found else None

    def revision(self) -> str:
        """The revision that serves as stable."""
        return str(self.arms()[0]["revision"])

    def arms(self) -> list[dict[str, Any]]:
        """The arms of the routes."""
        content = json.loads((self.home / "control" / "routes.json").read_text())
        found: list[dict[str, Any]] = content["services"][self.machine.service]["arms"]
        return found

    def fault(self, revision: str, **faults: Any) -> None:
        """Switch faults of a revision; none switches them off."""
        file = control_file(self.home, revision)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(faults))
        draft.replace(file)

    def watch(self, name: str, dry_run: bool = False, config: Any = None, **changes: Any) -> None:
        """Look again and again at one row alone, with these changes to its configuration."""
        rows: dict[str, Any] = {other: {"mode": "off"} for other in DEFAULT_ROWS}
        short = {"for_seconds": 0, "clear_seconds": 2, "cooldown_seconds": 0, "verify_seconds": 30}
        rows[name] = {"mode": "act", **short, **changes}
        given = {"probes_asked": 0, "dry_run": dry_run, "requests_min": 5, **(config or {})}
        content = HealthConfig.model_validate({"rows": rows, **given}).model_dump_json()
        path = self.home / "health.json"
        draft = path.with_suffix(".draft")
        draft.write_text(content)
        draft.replace(path)
        if self._watch is None:
            for variable, value in self.variables().items():
                os.environ[variable] = value
            self._watch = self.machine.spawn("watch", "-m", "tests.health.watch_process", str(path))
            for variable in self.variables():
                del os.environ[variable]
        self.looks(1)

    def variables(self) -> dict[str, str]:
        """What a command of this home needs in its environment."""
        return {
            "SERIN_HOME": str(self.home),
            "SERIN_KUBE_URL": self.machine.kube_url,
            "SERIN_GATEWAY_URL": self.machine.gateway_url,
            "SERIN_PROBE_KEY": KEY,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
            **self.environment,
        }

    def stop_watch(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
            self._watch = None

    def looks(self, count: int) -> None:
        """Wait until the watch has looked so many times more."""
        for _ in range(count):
            self._next_look()

    def _next_look(self) -> None:
        looked = self.notes().time_seconds
        until(lambda: self.notes().time_seconds > looked, "a look", 5 * LONG_SECONDS)

    def notes(self) -> Any:
        """What the watch remembers."""
        return Notes(self.ledger, "default", self.machine.service).read()

    def events(self, row: str, since: int) -> list[Event]:
        """The row's events after one."""
        return [e for e in self.ledger.events(since=since) if e.body.get("row") == row]

    def seq(self) -> int:
        """The last event's number."""
        return self.ledger.last_events(1)[0].seq

    def ask(self, text: str = PROMPT, key: str = KEY, **fields: Any) -> httpx.Response:
        """Ask once as an ordinary client."""
        return self.post(self._http, text, key, **fields)

    def post(
        self, client: httpx.Client, text: str = PROMPT, key: str = KEY, **fields: Any
    ) -> httpx.Response:
        """Ask once through a client."""
        turns = [{"role": "user", "content": text}]
        body = {"model": self.machine.service, "messages": turns, "max_tokens": 4, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        return client.post(self.machine.gateway_url + CHAT_PATH, json=body, headers=headers)

    def score(self, score: float) -> str:
        """Ask once and score the answer; return the version that gave it."""
        answer = self.ask(temperature=1)
        body = {"id": answer.headers["x-serin-response-id"], "score": score, "source": "test"}
        url, headers = self.machine.gateway_url, {"Authorization": f"Bearer {EVALUATOR}"}
        given = self._http.post(url + "/v1/feedback", json=body, headers=headers)
        assert given.status_code == 202, given.text
        return answer.headers["x-serin-model-version"]

    def mode(self) -> dict[str, Any]:
        """The gateway's mode file."""
        path = self.home / "control" / "mode.json"
        return msgspec.json.decode(path.read_bytes()) if path.exists() else {}


@contextmanager
def repeated(do: Callable[[], object], pause_seconds: float, threads: int = 1) -> Iterator[None]:
    """Do something again and again beside the test."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            with suppress(httpx.HTTPError):  # what clients lose is counted by the load
                do()
            ended.wait(pause_seconds)

    runners = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for runner in runners:
        runner.start()
    try:
        yield
    finally:
        ended.set()
        for runner in runners:
            runner.join()


class Case:
    """One fault: when it began, when a row acted, when clients were well again."""

    def __init__(self, world: HealthWorld, row: str, fault: str) -> None:
        self.world, self.row, self._fault = world, row, fault
        self._seq = world.seq()
        before = world.load.report()
        self._failed, self._sent = before.failed, before.sent
        self._began = time.monotonic()
        self._acted = 0.0
        self._recovered: float | None = None
        self._recovery = ""

    def acts(self, kind: str = "health_act") -> Event:
        """Wait until the row does something."""
        found = self.event(kind)
        self._acted = time.monotonic()
        self._recovery = str(found.body["recovery"])
        return found

    def event(self, kind: str) -> Event:
        """Wait for an event of the row."""

        try:
            found = until(lambda: self.seen(kind), f"{kind} of {self.row}", 2 * LONG_SECONDS)
        except AssertionError as error:
            for event in self.world.events(self.row, self._seq):
                error.add_note(f"{event.kind} {event.body}"[:300])
            error.add_note(str(self.world.notes().readings))
            raise
        assert found is not None
        return found

    def seen(self, kind: str) -> Event | None:
        """The row's first event of a kind, if there is one yet."""
        events = self.world.events(self.row, self._seq)
        return next((event for event in events if event.kind == kind), None)

    def recovers(self, look: Callable[[], object], what: str) -> None:
        """Wait until clients see that it helps."""
        until(look, what, 2 * LONG_SECONDS)
        self._recovered = time.monotonic()

    def undone(self) -> None:
        """Wait until the recovery is taken back, and for some looks more; add the line."""
        self.event("health_undo")
        self.world.looks(CALM_LOOKS)
        events = self.world.events(self.row, self._seq)
        kinds = [event.kind for event in events if event.kind in CHANGES]
        assert kinds.index("health_undo") == len(kinds) - 1, kinds
        assert self.world.ledger.verify() == []
        report = self.world.load.report()
        detect = self._acted - self._began
        recover = self._recovered - self._began if self._recovered else None
        failed, sent = report.failed - self._failed, report.sent - self._sent
        DRILL.append(DrillRow(self.row, self._fault, self._recovery, detect, recover, failed, sent))
        self.failed = failed

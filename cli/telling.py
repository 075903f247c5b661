"""Tells a run: the stack, the retrain flow per day, live traffic and faults around it.

The flows run in this process against the real Prefect server, so that each is in its UI.
"""

import contextlib
import importlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from cli.environment import stack_environment
from cli.stack import start_stack, stop_stack
from cli.stack_file import read_stack
from cli.story import DayPlan, Fault, Story
from core.contracts import ReleaseState
from core.errors import SerinError
from core.settings import Settings

if TYPE_CHECKING:
    from observability.load import LoadGenerator

FAULT_POLL_SECONDS = 0.2
PROMPTS_MAX = 2_000
LIBRARIES = (
    "great_expectations",
    "torch",
    "transformers",
    "peft",
    "evidently",
    "nncf",
    "optimum.intel",
)


class Telling:
    """One run of `serin run`, from stack to table rows."""

    def __init__(
        self, settings: Settings, told: Story, parameters: dict[str, Any], console: Console
    ) -> None:
        self._settings = settings
        self._told = told
        self._parameters = parameters
        self._console = console
        self._load: LoadGenerator | None = None
        self._rate = 0.0

    @contextlib.contextmanager
    def stack(self) -> Iterator[None]:
        """Use the running stack, or start one without a worker and stop it at the end."""
        running = read_stack(self._settings.home).supervised
        signal.signal(signal.SIGTERM, _end)
        if self._told.has_faults:
            os.environ["SERIN_ALLOW_FAULTS"] = "1"
        # The servers take longer to come up than the libraries take to load: do both at once.
        threading.Thread(target=_load_libraries, daemon=True).start()
        try:
            start_stack(self._settings, worker=False)
            self._settings = Settings.read()
            # Prefect reads its address when it is first imported, which is after this.
            os.environ.update(stack_environment(self._settings))
            os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
            os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
            yield
        finally:
            if not running:
                stop_stack(self._settings)

    @contextlib.contextmanager
    def traffic(self, rate: float) -> Iterator[None]:
        """Send `rate` requests/s of held-out prompts from the first stable version on."""
        self._rate = rate
        try:
            yield
        finally:
            if self._load is not None:
                self._load.stop()

    def tell(self, days_max: int | None) -> list[dict[str, Any]]:
        """Run every day in order; return the table's rows."""
        from lake.config import IngestConfig
        from lake.sources import list_days

        ingest = IngestConfig.model_validate(self._parameters["ingest"])
        excluded = [ingest.evaluation.uri] if ingest.evaluation.uri else []
        listing = list_days(ingest.data, ingest.pattern, excluded)
        for name in listing.left_out:
            self._console.print(f"not a day: {name}")
        rows = []
        self._keep_traffic_going()  # on top of an earlier run something serves from the start
        for day in listing.days[:days_max]:
            rows.append(self._tell_day(day.day))
            self._keep_traffic_going()
        return rows

    def served(self) -> dict[str, Any]:
        """Return what the live traffic met: requests sent, failed, and the causes."""
        if self._load is None:
            return {"sent": 0, "failed": 0, "causes": {}}
        self._load.stop()
        report = self._load.report()
        return {"sent": report.sent, "failed": report.failed, "causes": dict(report.causes)}

    def _tell_day(self, day: str) -> dict[str, Any]:
        from flows.retrain import retrain

        plan = self._told.days.get(day, DayPlan(ends=""))
        with self._faulty(plan.fault):
            state = retrain(**self._parameters, day=day, return_state=True)
        if not state.is_completed():
            return self._crashed(day, state)
        result = msgspec.to_builtins(state.result())
        self._console.print(f"[bold]{day}: {result['final_state']}[/bold]  {result['reason']}")
        return dict(result)

    def _crashed(self, day: str, state: Any) -> dict[str, Any]:
        reason = str(state.message or "")
        self._console.print(f"[red]{day}: {state.name}[/red]  {reason}")
        return {
            "day": day, "final_state": f"{state.name}", "reason": reason, "rows_in": 0,
            "quarantined": 0, "quality_before": None, "quality_after": None, "verdict": None,
            "seconds": {},
        }  # fmt: skip

    def _keep_traffic_going(self) -> None:
        """Start the live traffic once something serves, and feed it the newest prompts."""
        if not self._rate:
            return
        from lake.replay import earlier_held_out
        from lake.snapshots import flagged_versions
        from lake.table import Lake
        from observability.load import LoadConfig, LoadGenerator
        from rollout.ledger import Ledger

        if Ledger(self._settings.ledger_url).stable(self._settings.service) is None:
            return
        lake = Lake(self._settings.lake_uri)
        head = lake.head_version()
        flagged = flagged_versions(self._settings.folder("snapshots"))
        records = earlier_held_out(lake, (head or 0) + 1, flagged, PROMPTS_MAX)
        prompts = [record.messages for record in records]
        if self._load is None:
            config = LoadConfig(
                url=self._settings.gateway_url, model=self._settings.service, rps=self._rate
            )
            self._load = LoadGenerator(config, prompts)
            self._load.start()
        else:
            self._load.use(prompts)

    @contextlib.contextmanager
    def _faulty(self, fault: Fault | None) -> Iterator[None]:
        """While the day's canary has live traffic, its predictor shows the fault."""
        if fault is None:
            yield
            return
        stop = threading.Event()
        thread = threading.Thread(target=self._inject, args=(fault, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _inject(self, fault: Fault, stop: threading.Event) -> None:
        from rollout.ledger import Ledger

        ledger = Ledger(self._settings.ledger_url)
        folder = self._settings.folder("control") / "faults"
        folder.mkdir(exist_ok=True)
        while not stop.wait(FAULT_POLL_SECONDS):
            with contextlib.suppress(SerinError):
                release = ledger.active(self._settings.service)
                live = release is not None and release.state is ReleaseState.CANARY
                if live and release and release.share and release.revision:
                    path = folder / f"{release.revision}.json"
                    path.write_text(json.dumps(fault.model_dump()))
                    self._console.print(f"[yellow]fault injected into {path.stem}[/yellow]")
                    return


def _end(number: int, _frame: object) -> None:
    """End like any other way out, so that nothing is left running."""
    raise SystemExit(128 + number)


def _load_libraries() -> None:
    """Import what the first day would otherwise wait for; what is missing says so when used."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

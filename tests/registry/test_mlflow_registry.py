"""The registry on a real MLflow: runs, versions, aliases, and adapters that cannot be exchanged."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import BaseModel

from core.contracts import Evidence, SnapshotRef, Verdict
from core.digests import digest_folder
from core.errors import IntegrityError, NotFoundError, RefusedError, UnavailableError
from registry.connection import QUIET, Connection
from registry.runs import Run, start_run
from registry.versions import Lineage, Registry, code_revision

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = SnapshotRef("ab" * 32, "/lake/snapshots/ab", 1500, 160, 3, 7, ("day-1", "day-2"))
PASS = Verdict("pass", (Evidence("quality", "pass", "fine", figures={"score": 0.91}),))


class Config(BaseModel):
    rank: int = 16
    targets: tuple[str, ...] = ("q", "v")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Connection:
    return Connection.local(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A real MLflow server on an ephemeral port."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{home}/mlflow.db",
        "--artifacts-destination", str(home / "artifacts"), "--workers", "1",
    ]  # fmt: skip
    quiet = {**os.environ, **QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet.pop("MLFLOW_TRACKING_URI", None)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=quiet, cwd=home, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not answers(url):
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        yield Connection(url)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def make_adapter(folder: Path, content: str = "weights") -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return folder


def lineage_of(adapter: Path, run: Run, **changes: object) -> Lineage:
    values: dict[str, object] = {
        "snapshot": SNAPSHOT,
        "records_uri": "/lake/records",
        "base_digest": "b" * 64,
        "adapter_digest": digest_folder(adapter),
        "bundle_digest": "c" * 64,
        "bundle_uri": "file:///bundles/" + "c" * 64,
        "run_id": run.run_id,
        "slices": ("orders", "billing"),
        "code_revision": "deadbeef",
        "config": {"rank": 16},
        "metrics": {"loss": 0.25},
        **changes,
    }
    return Lineage(**values)  # type: ignore[arg-type]


def register(registry: Registry, folder: Path, content: str) -> str:
    adapter = make_adapter(folder / content, content)
    with start_run(registry.connection, content) as run:
        return registry.register(adapter, lineage_of(adapter, run), PASS).version


def exercise(connection: Connection, folder: Path, name: str) -> None:
    """Everything that a day does, for a local database and a server alike."""
    report = folder / "drift.html"
    report.write_text("<p>drift</p>")
    found = Evidence("drift", "pass", "fine", figures={"rows": 5}, report=str(report))
    verdict = Verdict("pass", (*PASS.evidence, found))
    adapter = make_adapter(folder / "adapter")
    with start_run(connection, "day-2", {"day": "day-2"}) as run:
        run.log_config("train", Config())
        run.log_snapshot(SNAPSHOT, "/lake/records")
        for step in range(30):
            run.log_metrics(step, {"loss": 1 / (step + 1)})
        run.log_verdict(verdict, "# page")
    registry = Registry(connection, name)
    lineage = lineage_of(adapter, run)
    registered = registry.register(adapter, lineage, verdict, "# page")

    client = connection.client()
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["train.rank"] == "16"
    assert stored.data.metrics["loss"] == pytest.approx(1 / 30)
    assert stored.data.metrics["quality.score"] == pytest.approx(0.91)
    assert len(client.get_metric_history(run.run_id, "loss")) == 30
    assert stored.data.tags["gate.drift"] == "pass"
    dataset = stored.inputs.dataset_inputs[0].dataset
    assert dataset.source_type == "delta_table"
    assert json.loads(dataset.source) == {"path": "/lake/records", "delta_table_version": 7}
    assert json.loads(dataset.profile)["version_first"] == 3
    files = {item.path for item in client.list_artifacts(run.run_id)}
    assert {"reports", "verdict.md", "config"} <= files

    assert registered.aliases == ("candidate",)
    assert registered.adapter_digest == digest_folder(adapter)
    assert registered.delta_version_last == 7
    assert registry.lineage(registered.version) == lineage
    assert registry.verdict(registered.version) == verdict
    assert registry.register(adapter, lineage, verdict).version == registered.version
    fetched = registry.fetch_adapter(registered.version, folder / "cache" / "adapter")
    assert digest_folder(fetched) == registered.adapter_digest
    registry.promote(registered.version)
    stable = registry.find("stable")
    assert stable is not None
    assert (stable.version, stable.state) == (registered.version, "promoted")
    assert [item.version for item in registry.versions()] == [registered.version]
    with pytest.raises(NotFoundError):
        registry.get("99")


def test_a_day_is_recorded_in_a_local_database(local: Connection, tmp_path: Path) -> None:
    exercise(local, tmp_path, "day")
    assert local.page("x") == ""


@pytest.mark.slow
def test_a_day_is_recorded_on_a_server(server: Connection, tmp_path: Path) -> None:
    exercise(server, tmp_path, "day")
    with start_run(server, "linked") as run:
        page = run.url
    assert page.startswith(server.uri)
    assert run.run_id in page


def test_registering_is_quick(local: Connection, tmp_path: Path) -> None:
    registry = Registry(local, "quick")
    register(registry, tmp_path, "first")
    adapter = make_adapter(tmp_path / "second", "second")
    with start_run(local, "second") as run:
        lineage = lineage_of(adapter, run)
        started = time.process_time()
        registry.register(adapter, lineage, PASS)
        assert time.process_time() - started < 2


def test_an_unknown_service_has_no_versions(local: Connection) -> None:
    registry = Registry(local, "never-registered")
    assert registry.find("stable") is None
    assert registry.aliases() == {}
    assert registry.versions() == []


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_only_a_pass_is_registered(local: Connection, tmp_path: Path, outcome: str) -> None:
    registry = Registry(local, "refused")
    adapter = make_adapter(tmp_path / "a")
    verdict = Verdict(outcome, (Evidence("drift", outcome, "x", ("too far",)),))  # type: ignore[arg-type]
    with start_run(local, "r") as run, pytest.raises(RefusedError, match="drift: too far"):
        registry.register(adapter, lineage_of(adapter, run), verdict)
    assert registry.versions() == []


def test_another_adapter_than_the_judged_one_is_not_registered(
    local: Connection, tmp_path: Path
) -> None:
    registry = Registry(local, "exchanged")
    adapter = make_adapter(tmp_path / "a")
    with start_run(local, "r") as run:
        lineage = lineage_of(adapter, run)
        (adapter / "adapter_model.safetensors").write_text("others")
        with pytest.raises(IntegrityError, match="digest"):
            registry.register(adapter, lineage, PASS)
        pickled = make_adapter(tmp_path / "b")
        (pickled / "optimizer.pt").write_text("")
        with pytest.raises(IntegrityError, match="safetensors only"):
            registry.register(pickled, lineage_of(pickled, run), PASS)
    assert registry.versions() == []


def test_promotion_moves_all_three_aliases_and_may_be_repeated(
    local: Connection, tmp_path: Path
) -> None:
    registry = Registry(local, "aliases")
    one, two = (register(registry, tmp_path, content) for content in ("one", "two"))
    registry.promote(one)
    assert registry.aliases() == {"stable": one, "candidate": two}
    for _ in range(2):
        registry.promote(two)
        assert registry.aliases() == {"stable": two, "previous": one}


def test_promotion_ends_alike_after_a_crash_between_its_steps(
    local: Connection, tmp_path: Path
) -> None:
    registry = Registry(local, "crash")
    one, two = (register(registry, tmp_path, content) for content in ("one", "two"))
    registry.promote(one)
    registry.point("previous", one)
    registry.promote(two)
    assert registry.aliases() == {"stable": two, "previous": one}
    registry.point("candidate", two)
    registry.promote(two)
    assert registry.aliases() == {"stable": two, "previous": one}


def test_rolling_back_a_promotion_restores_what_was_before_it(
    local: Connection, tmp_path: Path
) -> None:
    registry = Registry(local, "rollback")
    one, two, three = (register(registry, tmp_path, text) for text in ("one", "two", "three"))
    for version in (one, two, three):
        registry.promote(version)
    for _ in range(2):
        stable = registry.roll_back(three, "slow")
        assert stable is not None
        assert stable.version == two
        assert registry.aliases() == {"stable": two, "previous": one}
    withdrawn = registry.get(three)
    assert (withdrawn.state, withdrawn.reason) == ("withdrawn", "slow")
    assert registry.roll_back(two, "wrong", to=one) is not None
    assert registry.aliases() == {"stable": one}
    with pytest.raises(NotFoundError, match="no version before"):
        registry.roll_back(one, "nothing left")
    assert registry.aliases() == {"stable": one}


def test_a_rejected_canary_leaves_stable_alone(local: Connection, tmp_path: Path) -> None:
    registry = Registry(local, "canary")
    one, two = (register(registry, tmp_path, content) for content in ("one", "two"))
    registry.promote(one)
    registry.roll_back(two, "errors")
    assert registry.aliases() == {"stable": one}
    waiting = register(registry, tmp_path, "three")
    registry.withdraw(two, "again")
    assert registry.aliases() == {"stable": one, "candidate": waiting}


def test_a_changed_adapter_in_the_registry_is_not_loaded(local: Connection, tmp_path: Path) -> None:
    registry = Registry(local, "tampered")
    version = register(registry, tmp_path, "one")
    place = local.client().get_logged_model(registry.get(version).model_id).artifact_location
    folder = Path(place.removeprefix("file://"))
    (folder / "adapter" / "adapter_model.safetensors").write_text("evil")
    with pytest.raises(IntegrityError, match="do not load it"):
        registry.fetch_adapter(version, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    shutil.rmtree(folder / "adapter")
    with pytest.raises(NotFoundError):
        registry.fetch_adapter(version, tmp_path / "cache")


def test_a_damaged_local_copy_is_fetched_again(local: Connection, tmp_path: Path) -> None:
    registry = Registry(local, "damaged")
    version = register(registry, tmp_path, "one")
    folder = registry.fetch_adapter(version, tmp_path / "cache" / version)
    (folder / "adapter_config.json").write_text("{}")
    again = registry.fetch_adapter(version, folder)
    assert digest_folder(again) == registry.get(version).adapter_digest
    assert [path.name for path in folder.parent.iterdir()] == [version]


def test_exchanged_records_are_noticed(local: Connection, tmp_path: Path) -> None:
    registry = Registry(local, "records")
    version = register(registry, tmp_path, "one")
    place = local.client().get_logged_model(registry.get(version).model_id).artifact_location
    for name, read in (("lineage.json", registry.lineage), ("verdict.json", registry.verdict)):
        path = Path(place.removeprefix("file://")) / "serin" / name
        path.write_text(path.read_text().replace("pass", "fail").replace("1500", "1501"))
        with pytest.raises(IntegrityError, match="not the one recorded"):
            read(version)


def test_a_run_that_raises_has_failed(local: Connection) -> None:
    run = start_run(local, "broken")
    run.log_metrics(0, {"loss": 1.0})
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    stored = local.client().get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.metrics["loss"] == 1.0
    again = Run(local, run.run_id)
    again.tag({"later": "yes"})
    again.finish()
    assert local.client().get_run(run.run_id).data.tags["later"] == "yes"


def test_metrics_can_be_seen_while_the_run_goes_on(local: Connection) -> None:
    run = start_run(local, "live")
    deadline = time.monotonic() + 10
    step = 0
    while "loss" not in local.client().get_run(run.run_id).data.metrics:
        run.log_metrics(step, {"loss": 1.0})
        step += 1
        assert time.monotonic() < deadline
    assert local.client().get_run(run.run_id).info.status == "RUNNING"
    run.finish()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Connection:
    """A server that does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Connection(f"http://127.0.0.1:{port}")


def test_a_server_that_is_away_is_named(away: Connection) -> None:
    with pytest.raises(UnavailableError, match=away.uri):
        start_run(away, "nobody")


def test_a_training_goes_on_while_the_server_is_away(away: Connection) -> None:
    run = Run(away, "0" * 32)
    for step in range(2000):
        run.log_metrics(step, {"loss": 1.0})
    with pytest.raises(UnavailableError):
        run.finish()


def test_the_code_revision_names_the_commit(tmp_path: Path) -> None:
    assert code_revision(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "x").write_text("1")
    for command in (["init", "-q"], ["add", "x"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    clean = code_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "x").write_text("2")
    assert code_revision(tmp_path) == f"{clean}-dirty"

"""The same ledger on a real PostgreSQL server, started for these tests when it is installed."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from release_scenarios import ROLL_BACK, SERVICE, begin, bundle, candidate, finish, plan, promote
from sqlalchemy import Connection, text

from cli.history import history
from core.backup_place import BackupPlace
from core.contracts import CounterSample, ReleaseState
from core.errors import ConfigurationError, ConflictError, FencedError, UnavailableError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.database import Database
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.schema import prepare
from rollout.writer import Writer
from tasks.backups import back_up
from tasks.restoring import restore

START_SECONDS = 60
OPTIONS = "-c fsync=off -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -p "


def programs() -> Path | None:
    """The folder of the newest installed server programs."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@dataclass
class Server:
    """A server in a folder of its own; as root it runs as another user, as it insists on."""

    folder: Path
    binaries: Path
    port: int
    user: str | None

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), *arguments]
        done = subprocess.run(
            command,
            user=self.user,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"

    def start(self) -> None:
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", f"{OPTIONS}{self.port}", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    @property
    def data(self) -> str:
        return str(self.folder / "data")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    binaries = programs()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    folder = Path(tempfile.mkdtemp(prefix="serin-postgresql-"))
    user = None
    if os.geteuid() == 0:
        user = next(n for n in ("postgres", "nobody") if n in {p.pw_name for p in pwd.getpwall()})
        shutil.chown(folder, user)
    made = Server(folder, binaries, free_port(), user)
    try:
        made.run("initdb", "-D", made.data, "-U", "serin", "-A", "trust", "--no-sync")
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A database of its own for each test."""
    name = f"ledger_{abs(hash(request.node.name))}"
    database = Database(f"postgresql://serin@127.0.0.1:{server.port}/postgres")
    engine = database._engine.execution_options(isolation_level="AUTOCOMMIT")

    def create() -> None:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))

    database._run(create)
    database.close()
    return f"postgresql://serin@127.0.0.1:{server.port}/{name}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    yield opened
    opened.close()


def create(writer: Writer, **fields: object) -> object:
    return writer.create("default", candidate("1"), plan(), "proposed", {}, **fields)  # type: ignore[arg-type]


def test_releases_and_rollbacks_run_on_it(
    ledger: Ledger, services: FakeInferenceServices, url: str
) -> None:
    conductor = Conductor(ledger, services, "flow")
    promote(conductor, "1")
    promote(conductor, "2", "1")
    finish(conductor, begin(conductor, "3", "2"), ROLL_BACK)
    ended = conductor.roll_back_service(SERVICE, "ann", "x")
    assert ended.state is ReleaseState.ROLLED_BACK
    assert services.weights("default", SERVICE) == {bundle("1"): 100}
    assert ledger.verify() == []
    again = Ledger(url)
    assert again.release(ended.release_id) == ended
    assert again.stable(SERVICE) == ended
    assert again.failed_first() == []
    seconds = Database(url)
    now = seconds.read(seconds.now_seconds)
    assert again.serving_at(SERVICE, now + 60)[0].model_version == "1"
    seconds.close()
    again.close()


def test_history_is_told_from_it(
    ledger: Ledger,
    services: FakeInferenceServices,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    conductor = Conductor(ledger, services, "flow")
    promote(conductor, "1")
    promote(conductor, "2", "1")
    monkeypatch.setenv("SERIN_LEDGER_URL", url)
    asked = {"json_output": True, "at": None, "release": None, "limit": None, "verify": True}
    changes = [event for event in ledger.events() if event.serving]
    assert len(changes) >= 4
    for event in changes:
        history(**{**asked, "at": event.time})  # type: ignore[arg-type]
        seen = json.loads(capsys.readouterr().out)
        assert (seen["seq"], seen["hash"]) == (event.seq, event.hash)
    history(**{**asked, "release": changes[-1].release_id})  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["state"] == "PROMOTED"


def test_the_database_enforces_one_active_release_epochs_and_leases(ledger: Ledger) -> None:
    ledger.write(lambda w: create(w, state=ReleaseState.CANARY, holder="flow"))
    with pytest.raises(ConflictError):
        ledger.write(lambda w: create(w, state=ReleaseState.ROLLING_BACK))
    held = ledger.active(SERVICE)
    assert held is not None
    assert not ledger.stale(held)
    with pytest.raises(ConflictError, match="is held by flow"):
        ledger.write(lambda w: w.take_over(held, "keeper", "taken_over", {}, only_stale=True))
    ledger.write(lambda w: w.take_over(held, "keeper", "taken_over", {}))
    with pytest.raises(FencedError):
        ledger.write(lambda w: w.change(held, "late", {}))
    assert ledger.verify() == []


def test_many_writers_append_one_unbroken_chain(ledger: Ledger, url: str) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            own = Ledger(url)
            for _ in range(10):
                own.write(create)
            own.add_sample("r-1", CounterSample(1.0, 0.5, None, None))
            own.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(ledger.events()) == 40
    assert len(ledger.samples("r-1")) == 4
    assert ledger.verify() == []


def test_a_home_is_restored_into_it_and_goes_on(
    url: str, services: FakeInferenceServices, tmp_path: Path
) -> None:
    """A SQLite home, whose releases have been scraped, comes back with PostgreSQL as its ledger."""
    settings = Settings.read({"SERIN_HOME": str(tmp_path / "home")})
    lost = Ledger(settings.ledger_url)
    conductor = Conductor(lost, services, "flow")
    promote(conductor, "1")
    running = begin(conductor, "2", "1")
    sample = CounterSample(1.0, 0.5, None, None)
    for _ in range(3):
        lost.add_sample(running.release_id, sample)
    place = BackupPlace(str(tmp_path / "place"))
    back_up(settings, place)
    before = lost.events()
    lost.close()
    found = restore(place, tmp_path / "new", ledger_url=url)
    assert (found.stable_version, found.active_releases) == ("1", (running.release_id,))
    assert not [*(tmp_path / "new").glob("ledger.db*")]
    restored = Ledger(url)
    assert restored.events()[:-1] == before
    restored.add_sample(running.release_id, sample)
    assert len(restored.samples(running.release_id)) == 4
    ended = Conductor(restored, services, "flow").roll_back(running.release_id, "lost", "keeper")
    assert ended.state is ReleaseState.ROLLED_BACK
    assert restored.verify() == []
    restored.close()
    with pytest.raises(ConflictError, match="is not empty"):
        restore(place, tmp_path / "again", ledger_url=url)
    assert not (tmp_path / "again").exists()


def test_a_restarted_server_is_found_again(ledger: Ledger, server: Server) -> None:
    ledger.write(create)
    server.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        ledger.releases()
    with pytest.raises(UnavailableError):
        ledger.write(create)
    server.start()
    ledger.write(create)
    assert len(ledger.releases()) == 2


def test_it_migrates_forward_after_a_copy_of_its_tables(url: str) -> None:
    ledger = Ledger(url)
    ledger.write(create)
    ledger.close()

    def add_a_column(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE samples ADD COLUMN source TEXT"))

    database = Database(url)
    prepare(database, 2, {1: add_a_column})
    copies = database.read(
        lambda c: c.execute(text("SELECT count(*) FROM releases_before_v2")).scalar_one()
    )
    assert copies == 1
    database.close()
    with pytest.raises(ConfigurationError, match="use a newer Serin"):
        Ledger(url)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        Ledger(f"postgresql://serin@127.0.0.1:{free_port()}/ledger")

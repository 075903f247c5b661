"""Fixtures for every room: free ports, the repository, shared data, and one real stack."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.environment import MEMBER_VARIABLE, silence, stack_environment
from cli.processes import members
from core.settings import Settings
from tests.bundles import scripted_bundle
from tests.otlp_collector import Collector, collector
from tests.running_stack import (
    DOWN_SECONDS_MAX,
    ROOT,
    UP_SECONDS_MAX,
    Stack,
    isolated_environment,
    serin,
)

__all__ = ["Stack", "serin"]

silence()
# Most tests start a predictor for a few requests: kernels may be compiled when they are needed.
os.environ.setdefault("SERIN_PREDICTOR_WARM_UP_SECONDS", "0")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the repository; tests are skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data beside the repository")
    return folder


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture
def taken() -> Iterator[Collector]:
    """A collector that takes traces and metrics over HTTP and gRPC."""
    with collector() as found:
        yield found


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real serving bundle with scripted answers, built once a session."""
    return scripted_bundle(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real stack on free ports, without the worker: started at most once, stopped at the end.

    A test that breaks a part must leave it running again.
    """
    home = tmp_path_factory.mktemp("stack")
    environment = isolated_environment(home)
    try:
        serin("up", "--no-worker", environment=environment, seconds=UP_SECONDS_MAX)
        settings = Settings.read(environment)
        bound = {**environment, **stack_environment(settings)}
        yield Stack(home, settings, bound, Path(environment["SERIN_TEST_OUTGOING"]))
    finally:
        serin("down", environment=environment, seconds=DOWN_SECONDS_MAX)
        assert not [*members(MEMBER_VARIABLE, str(home))]

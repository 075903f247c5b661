"""One scripted bundle a session, and the predictors that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from predictor_process import PredictorProcess

from tests.bundles import scripted_bundle

Start = Callable[..., PredictorProcess]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_bundle(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="session")
def shared(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, PredictorProcess]]:
    """A predictor per engine; both start at once, because transformers takes ten seconds."""
    found = {
        engine: PredictorProcess(
            bundle, tmp_path_factory.mktemp(engine), "--engine", engine, "--threads", "1"
        )
        for engine in ("openvino", "reference")
    }
    yield found
    for process in found.values():
        process.stop()


@pytest.fixture(params=["openvino", "reference"])
def predictor(
    request: pytest.FixtureRequest, shared: dict[str, PredictorProcess]
) -> PredictorProcess:
    """Each engine's predictor in turn: the API behaves the same on all."""
    engine: str = request.param
    return shared[engine].wait_ready()


@pytest.fixture
def openvino(shared: dict[str, PredictorProcess]) -> PredictorProcess:
    return shared["openvino"].wait_ready()


@pytest.fixture
def start(bundle: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a predictor with a home, options and environment of its own."""
    started: list[PredictorProcess] = []

    def begin(*options: str, **environment: object) -> PredictorProcess:
        folder = tmp_path / f"home{len(started)}"
        started.append(PredictorProcess(bundle, folder, *options, **environment))
        return started[-1]

    yield begin
    for process in started:
        process.stop()

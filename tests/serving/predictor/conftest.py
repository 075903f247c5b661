"""The predictors that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from predictor_process import VLLM_ENVIRONMENT, PredictorProcess

Start = Callable[..., PredictorProcess]
BOTH = ("openvino", "reference")
ENGINES = [*BOTH, pytest.param("vllm", marks=pytest.mark.vllm)]


@pytest.fixture(scope="session")
def shared(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, PredictorProcess]]:
    """A predictor per engine; all start at once, because transformers takes ten seconds."""
    asking = [
        item for item in request.session.items if "shared" in getattr(item, "fixturenames", ())
    ]
    marked = [item.get_closest_marker("vllm") is not None for item in asking]
    names = [*(BOTH if not all(marked) else ()), *(["vllm"] if any(marked) else [])]
    found = {
        engine: PredictorProcess(
            bundle,
            tmp_path_factory.mktemp(engine),
            *("--engine", engine, "--threads", "1"),
            **(VLLM_ENVIRONMENT if engine == "vllm" else {}),
        )
        for engine in names
    }
    yield found
    for process in found.values():
        process.stop()


@pytest.fixture(params=ENGINES)
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

"""Versions side by side on one vLLM server answer as peft does; coming and going leaves nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from adapter_bundles import PROMPTS, TOKENS, Version, make_versions
from predictor_process import READY_SECONDS_MAX, ROOT, VLLM, PredictorProcess, ask, until

from core.manifests import read_manifest

pytestmark = pytest.mark.vllm

TEXT = "/openai/v1/completions"
ROUNDS = 4


class SharedServer:
    """A server of the base, as an operator starts it for several predictors."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.socket = folder / "socket"
        self._log = (folder / "log").open("wb")
        command = [sys.executable, "-m", "serving.engines.vllm_server", "--base", str(base)]
        environment = {**os.environ, "SERIN_PREDICTOR_VLLM": json.dumps(VLLM)}
        environment["SERIN_PREDICTOR_THREADS"] = "1"
        self.process = subprocess.Popen(
            [*command, f"--uds={self.socket}"],
            cwd=ROOT,
            env=environment,
            stdout=self._log,
            stderr=self._log,
        )
        self._client = httpx.Client(
            base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(self.socket))
        )

    def names(self) -> list[str]:
        """The models that it serves now: the base, then adapters."""
        try:
            return [model["id"] for model in self._client.get("/v1/models").json()["data"]]
        except httpx.TransportError:
            return []

    def running(self) -> float:
        """Answers in work."""
        lines = self._client.get("/metrics").text.splitlines()
        found = next(line for line in lines if line.startswith("vllm:num_requests_running{"))
        return float(found.split()[-1])

    def stop(self) -> None:
        self._client.close()
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Version]]:
    versions: tuple[Path, list[Version]] = make_versions(
        tmp_path_factory.mktemp("versions"), ("stable", "canary")
    )
    return versions


@pytest.fixture(scope="module")
def server(
    made: tuple[Path, list[Version]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SharedServer]:
    started = SharedServer(made[0], tmp_path_factory.mktemp("server"))
    try:
        until(lambda: bool(started.names()), READY_SECONDS_MAX)
        yield started
    finally:
        started.stop()


def begin(version: Version, folder: Path, **vllm: Any) -> PredictorProcess:
    return PredictorProcess(
        version.bundle,
        folder,
        *("--engine", "vllm", "--threads", "1"),
        SERIN_PREDICTOR_VLLM=json.dumps({**VLLM, **vllm}),
    )


@pytest.fixture
def arms(
    server: SharedServer, made: tuple[Path, list[Version]], tmp_path: Path
) -> Iterator[list[PredictorProcess]]:
    """A predictor of stable and one of the canary, both on the shared server."""
    shared = f"unix:{server.socket}"
    started = [
        begin(version, tmp_path / str(number), server=shared)
        for number, version in enumerate(made[1])
    ]
    yield [process.wait_ready() for process in started]
    for process in started:
        process.stop()


def answer(predictor: PredictorProcess, prompt: str, tokens: int = TOKENS) -> str:
    body = {"model": "assistant", "prompt": prompt, "temperature": 0, "max_tokens": tokens}
    with predictor.http() as client:
        content = client.post(TEXT, json=body).json()
    text: str = content["choices"][0]["text"]
    return text


def test_two_adapters_side_by_side_answer_as_peft_does(
    arms: list[PredictorProcess], made: tuple[Path, list[Version]]
) -> None:
    asked = [(arm, number) for number in range(len(PROMPTS)) for arm in (0, 1)] * ROUNDS
    with ThreadPoolExecutor(len(asked)) as pool:
        texts = list(pool.map(lambda item: answer(arms[item[0]], PROMPTS[item[1]]), asked))
    assert texts == [made[1][arm].answers[number] for arm, number in asked]
    assert made[1][0].answers != made[1][1].answers


def test_a_predictor_that_ends_unloads_its_adapter_and_disturbs_nobody(
    arms: list[PredictorProcess], server: SharedServer, made: tuple[Path, list[Version]]
) -> None:
    base = read_manifest(made[1][0].bundle).base_digest
    before = server.names()
    assert before[0] == base
    assert len(before) == 3
    assert arms[1].stop() == 0
    assert len(server.names()) == 2
    assert answer(arms[0], PROMPTS[0]) == made[1][0].answers[0]
    assert arms[0].stop() == 0
    assert server.names() == [base]


def test_a_client_that_leaves_frees_the_servers_slot(
    arms: list[PredictorProcess], server: SharedServer
) -> None:
    body = ask(max_tokens=500, n=4, stream=True)
    url = "/openai/v1/chat/completions"
    with arms[0].http() as client, client.stream("POST", url, json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        until(lambda: server.running() == 4, 5)
    until(lambda: server.running() == 0, 5)
    until(lambda: arms[0].metric("engine_answers") == 0, 5)


def test_running_answers_end_before_the_predictor_does(
    arms: list[PredictorProcess], made: tuple[Path, list[Version]]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(answer, arms[0], PROMPTS[0], 300)
        until(lambda: arms[0].metric("running_answers") == 1)
        arms[0].terminate()
        text = long.result()
    assert len(text) == 300
    assert text.startswith(made[1][0].answers[0])
    assert arms[0].process.wait(20) == 0


def test_a_server_of_another_base_is_refused(
    server: SharedServer, bundle: Path, made: tuple[Path, list[Version]], tmp_path: Path
) -> None:
    other, _ = make_versions(tmp_path / "other", ())
    (other / "extra.json").write_text("{}")
    wrong = begin(made[1][0], tmp_path / "wrong", base=str(other))
    assert wrong.process.wait(60) == 2, wrong.log
    assert "is not the base" in wrong.log
    without = begin(Version(bundle, []), tmp_path / "without", server=f"unix:{server.socket}")
    assert without.process.wait(60) == 3, without.log
    assert "share a server of that base" in without.log


@pytest.mark.parametrize("victim", ["predictor", "server"])
def test_whichever_is_killed_takes_the_other_along(
    made: tuple[Path, list[Version]], tmp_path: Path, victim: str
) -> None:
    base, versions = made
    predictor = begin(versions[0], tmp_path / "home", base=str(base)).wait_ready()
    assert answer(predictor, PROMPTS[1]) == versions[0].answers[1]
    family = psutil.Process(predictor.process.pid).children(recursive=True)
    if victim == "predictor":
        predictor.process.kill()
    else:
        server = next(one for one in family if "api_server" in " ".join(one.cmdline()))
        server.send_signal(signal.SIGKILL)
        assert predictor.process.wait(30) == 1
    assert psutil.wait_procs(family, 30)[1] == []

"""Many clients, full queues, deadlines, clients that leave, and an end without loss."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import httpx
import openai
import pytest
import uvicorn
from conftest import Start
from predictor_process import PredictorProcess, ask, until
from starlette.responses import Response
from test_predictor_conformance import said

from serving.engines.engine import Engine, EngineLoad
from serving.lifecycle import Identity, Lifecycle
from serving.model_server import Site, bind, serve

CHAT = "/openai/v1/chat/completions"
DELAY_SECONDS = 0.8
ENDLESS = {"max_tokens": 2048, "n": 8}
"""About 16,000 tokens: some seconds of work, so that leaving early can be seen."""


def idle(predictor: PredictorProcess) -> bool:
    names = ("running_answers", "engine_answers", "queue_requests")
    return all(predictor.metric(name) == 0 for name in names)


async def test_200_clients_at_once_all_get_their_own_answer(predictor: PredictorProcess) -> None:
    before = predictor.metric("requests_total", outcome="ok")
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(
        base_url=predictor.url, timeout=60, limits=limits, headers=predictor.headers
    ) as client:
        answers = await asyncio.gather(
            *(client.post(CHAT, json=ask(f"n {i}", max_tokens=1 + i % 12)) for i in range(200))
        )
    assert [answer.status_code for answer in answers] == [200] * 200
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert texts == [said(1 + i % 12) for i in range(200)]
    assert predictor.metric("requests_total", outcome="ok") == before + 200
    assert idle(predictor)


def test_leaving_a_stream_frees_its_slots(predictor: PredictorProcess) -> None:
    before = predictor.metric("requests_total", outcome="cancelled")
    body = ask(**ENDLESS, stream=True)
    with predictor.http() as client, client.stream("POST", CHAT, json=body) as answer:
        lines = answer.iter_lines()  # kept: a dropped iterator closes the connection
        next(lines)
        assert predictor.metric("running_answers") == 8
    until(lambda: idle(predictor), 3)
    assert predictor.metric("requests_total", outcome="cancelled") == before + 1


def test_leaving_before_a_whole_answer_frees_its_slots(predictor: PredictorProcess) -> None:
    before = predictor.metric("requests_total", outcome="cancelled")
    with predictor.http(0.2) as client, pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=ask(**ENDLESS))
    until(lambda: idle(predictor), 3)
    assert predictor.metric("requests_total", outcome="cancelled") == before + 1


@pytest.fixture(scope="module")
def narrow(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictorProcess]:
    """One slot, one place in the queue, and a delay before each answer."""
    process = PredictorProcess(
        bundle,
        tmp_path_factory.mktemp("narrow"),
        faults={"delay_seconds": DELAY_SECONDS},
        SERIN_PREDICTOR_CONCURRENCY="1",
        SERIN_PREDICTOR_QUEUE_REQUESTS_MAX="1",
    )
    yield process.wait_ready()
    process.stop()


def test_a_full_queue_refuses_with_a_time_to_come_back(narrow: PredictorProcess) -> None:
    with ThreadPoolExecutor(3) as pool, narrow.http() as client:
        first = pool.submit(client.post, CHAT, json=ask(max_tokens=3))
        until(lambda: narrow.metric("running_answers") == 1)
        second = pool.submit(client.post, CHAT, json=ask(max_tokens=3))
        until(lambda: narrow.metric("queue_requests") == 1)
        third = client.post(CHAT, json=ask(max_tokens=3))
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["code"] == "rate_limit_exceeded"
        with pytest.raises(openai.RateLimitError):
            narrow.openai().chat.completions.create(**ask(max_tokens=3))
        assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert narrow.metric("requests_total", outcome="refused") == 2
    assert idle(narrow)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_over_its_deadline_ends_with_504(narrow: PredictorProcess, stream: bool) -> None:
    before = narrow.metric("requests_total", outcome="expired")
    hurry = {"x-serin-deadline-seconds": "0.15"}
    with narrow.http() as client:
        answer = client.post(CHAT, json=ask(stream=stream), headers=hurry)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert answer.elapsed.total_seconds() < DELAY_SECONDS
    assert idle(narrow)
    assert narrow.metric("requests_total", outcome="expired") == before + 1


def test_the_deadline_counts_the_wait_for_a_slot(narrow: PredictorProcess) -> None:
    with ThreadPoolExecutor(1) as pool, narrow.http() as client:
        first = pool.submit(client.post, CHAT, json=ask(max_tokens=3))
        until(lambda: narrow.metric("running_answers") == 1)
        hurry = {"x-serin-deadline-seconds": "0.1"}
        assert client.post(CHAT, json=ask(), headers=hurry).status_code == 504
        assert narrow.metric("queue_requests") == 0
        assert first.result().status_code == 200


def test_a_stream_over_its_deadline_ends_with_an_error_event(predictor: PredictorProcess) -> None:
    create = predictor.openai().chat.completions.create
    for seconds in ("0.3", "0.6", "1.2", "2.4"):
        hurry = {"x-serin-deadline-seconds": seconds}
        try:
            stream = create(**ask(**ENDLESS), stream=True, extra_headers=hurry)
        except openai.InternalServerError:  # no sentence had left: the status says it
            continue
        with pytest.raises(openai.APIError, match=f"within {seconds} seconds"):
            list(stream)
        break
    else:
        pytest.fail("nothing left in time")
    until(lambda: idle(predictor), 3)


def test_running_requests_end_before_the_process_does(start: Start) -> None:
    predictor = start(faults={"delay_seconds": 2}).wait_ready()
    with ThreadPoolExecutor(2) as pool, predictor.http() as client:
        idle_connection = predictor.http()
        assert idle_connection.get("/v2/health/ready").status_code == 200
        whole = pool.submit(client.post, CHAT, json=ask(max_tokens=5))
        stream = pool.submit(client.post, CHAT, json=ask(max_tokens=5, stream=True))
        until(lambda: predictor.metric("running_answers") == 2)
        predictor.terminate()
        until(lambda: idle_connection.get("/v2/health/ready").status_code == 503, 1)
        assert idle_connection.get("/v2/models/assistant/ready").status_code == 503
        late = predictor.http().post(CHAT, json=ask())
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "draining"
        assert late.headers["connection"] == "close"
        assert "retry-after" in late.headers
        assert whole.result().json()["choices"][0]["message"]["content"] == said(5)
        assert stream.result().text.rstrip().endswith("data: [DONE]")
    assert predictor.process.wait(10) == 0


def test_the_drain_is_bounded(start: Start) -> None:
    predictor = start(
        faults={"delay_seconds": 60}, SERIN_PREDICTOR_DRAIN_SECONDS="0.3"
    ).wait_ready()
    with ThreadPoolExecutor(1) as pool, predictor.http() as client:
        stuck = pool.submit(client.post, CHAT, json=ask())
        until(lambda: predictor.metric("running_answers") == 1)
        predictor.terminate()
        assert predictor.process.wait(10) == 0
        assert stuck.result().status_code == 503


def test_a_failing_engine_is_503_and_counted_as_our_error(start: Start) -> None:
    predictor = start(faults={"error_share": 1.0}).wait_ready()
    for stream in (False, True):
        answer = predictor.http().post(CHAT, json=ask(stream=stream))
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
    assert predictor.metric("requests_total", outcome="error") == 2
    assert predictor.metric("request_seconds_count") == 2


class DyingEngine:
    """What the server asks of an engine; it dies when told to."""

    def __init__(self) -> None:
        self.alive = True

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0.0, self.alive)


async def test_the_server_ends_when_its_engine_died(tmp_path: Path) -> None:
    engine = DyingEngine()
    site = Site(
        identity=Identity("digest", "3", "assistant", "assistant-00003", "none", 0),
        lifecycle=Lifecycle(),
        engine=cast(Engine, engine),
        listener=bind("127.0.0.1", 0),
        port_file=tmp_path / "port",
        drain_seconds=1,
        token="",
    )
    server = uvicorn.Server(uvicorn.Config(Response("hello"), log_config=None))
    serving = asyncio.create_task(serve(server, site))
    while not site.lifecycle.ready:
        await asyncio.sleep(0.01)
    async with httpx.AsyncClient() as client:
        port = int((tmp_path / "port").read_text())
        assert (await client.get(f"http://127.0.0.1:{port}/")).text == "hello"
    engine.alive = False
    await asyncio.wait_for(serving, 5)
    assert site.failed
    assert not site.lifecycle.ready

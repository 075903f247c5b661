"""The OpenVINO engine answers whatever moment a request comes at, and gives up what it held."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.contracts import Message
from core.errors import UnavailableError
from core.manifests import read_manifest
from serving.engines.engine import GenerationRequest, Sampling
from serving.engines.openvino import OpenVinoEngine
from serving.engines.ticket import Ticket
from serving.predictor_config import PredictorConfig
from tests.bundles import said


@pytest.fixture
def started(bundle: Path) -> Iterator[OpenVinoEngine]:
    config = PredictorConfig(threads=1, warm_up_seconds=0)
    engine = OpenVinoEngine(bundle, read_manifest(bundle), config)
    engine.start()
    yield engine
    engine.stop()


def asked(engine: OpenVinoEngine, tokens: int) -> GenerationRequest:
    ids = engine.encode((Message("user", "hello"),))
    return GenerationRequest(ids, Sampling(max_tokens=tokens))


async def answer(engine: OpenVinoEngine, tokens: int) -> str:
    return "".join([piece.text async for piece in engine.generate(asked(engine, tokens))])


def test_requests_that_come_as_others_end_are_all_answered(started: OpenVinoEngine) -> None:
    async def one_after_the_other(client: int) -> None:
        for number in range(40):
            tokens = 1 + (client + number) % 6
            assert await answer(started, tokens) == said(tokens)

    async def clients() -> None:
        await asyncio.gather(*map(one_after_the_other, range(5)))

    asyncio.run(asyncio.wait_for(clients(), 60))
    assert started.load().answers == 0


def test_what_came_after_the_last_step_arrives_again_and_is_answered(
    started: OpenVinoEngine,
) -> None:
    async def late() -> str:
        ticket = Ticket(asked(started, 4))
        started._arrived.append(ticket)
        started._admit()  # no steps are running: nobody will take it up
        started._take_back()
        assert not started._pipeline.has_non_finished_requests()
        assert started._arrived == [ticket]
        other = await answer(started, 3)
        return other + "".join([piece.text async for piece in ticket.pieces()])

    assert asyncio.run(asyncio.wait_for(late(), 60)) == said(3) + said(4)


def test_a_reader_that_leaves_frees_the_place_of_its_answer(started: OpenVinoEngine) -> None:
    async def leave() -> None:
        pieces = started.generate(
            GenerationRequest(asked(started, 1).prompt_ids, Sampling(max_tokens=900), stream=True)
        )
        await anext(pieces)
        await pieces.aclose()
        while started.load().answers:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(leave(), 60))
    assert asyncio.run(answer(started, 3)) == said(3)


def test_stopping_fails_what_is_in_work_and_ends_the_steps(started: OpenVinoEngine) -> None:
    async def stopped() -> None:
        waiting = asyncio.create_task(answer(started, 900))
        while not started._active:
            await asyncio.sleep(0.001)
        started.stop()
        with pytest.raises(UnavailableError, match="stopped"):
            await waiting

    asyncio.run(asyncio.wait_for(stopped(), 60))
    assert not started._pipeline.has_non_finished_requests()
    assert not started.load().alive

"""Where answers are kept: bounded memory, or a real Redis that may fail at any time."""

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_world import World, until

from core.errors import ConfigurationError
from serving.gateway.cache_store import KeptAnswer
from serving.gateway.memory_store import ENTRY_BYTES, MemoryStore
from serving.gateway.redis_store import REST_SECONDS, RedisStore

Server = tuple[str, "subprocess.Popen[bytes]"]
PASSWORD = "a secret of the test"
PATIENCE = 2.0
redis_needed = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="redis-server is not installed: make programs"
)


def answer(size: int = 10) -> KeptAnswer:
    return KeptAnswer([(b"content-type", b"application/json")], b"chatcmpl-1", b"x" * size, 1.0)


async def test_memory_keeps_within_its_bytes_what_was_used_last() -> None:
    store = MemoryStore(60, 3 * (ENTRY_BYTES + 100))
    for key in (b"a", b"b", b"c"):
        await store.put(key, answer(100))
    await store.get(b"a")
    await store.put(b"d", answer(100))
    assert [await store.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [
        True, False, True, True,
    ]  # fmt: skip
    await store.put(b"e", answer(10_000))
    assert await store.get(b"e") is None
    await store.put(b"a", answer(200))
    assert store.entries == 2
    assert store.bytes == 2 * ENTRY_BYTES + 300


async def test_memory_forgets_after_the_time() -> None:
    now = [100.0]
    store = MemoryStore(60, 1 << 20, clock=lambda: now[0])
    await store.put(b"a", answer())
    now[0] = 159.9
    assert await store.get(b"a") == answer()
    now[0] = 160.0
    assert await store.get(b"a") is None
    assert (store.entries, store.bytes) == (0, 0)


@pytest.fixture
def redis(tmp_path: Path, free_port: int) -> Iterator[Server]:
    process = subprocess.Popen(
        ["redis-server", "--port", str(free_port), "--bind", "127.0.0.1", "--save", "", "--dir",
         str(tmp_path), "--requirepass", PASSWORD],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", free_port)) == 0

    until(listens)
    yield f"redis://127.0.0.1:{free_port}/0", process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


@redis_needed
async def test_redis_keeps_answers_for_their_time(
    redis: Server,
) -> None:
    store, other = (RedisStore(redis[0], PASSWORD, 1, PATIENCE) for _ in range(2))
    key = bytes(range(32))
    await store.put(key, answer())
    assert await other.get(key) == answer()
    assert await other.get(b"another") is None
    deadline = asyncio.get_running_loop().time() + 10
    while await store.get(key) is not None:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    assert (store.errors, other.errors) == (0, 0)
    await store.close()
    await other.close()


@redis_needed
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_redis_that_fails_is_left_alone_for_a_while(
    redis: Server, number: signal.Signals
) -> None:
    store = RedisStore(redis[0], PASSWORD, 60, PATIENCE)
    await store.put(b"key", answer())
    assert await store.get(b"key") == answer()
    redis[1].send_signal(number)
    if number == signal.SIGKILL:
        redis[1].wait()
    for _ in range(50):
        assert await store.get(b"key") is None
    assert store.errors == 1
    if number == signal.SIGSTOP:
        redis[1].send_signal(signal.SIGCONT)
        deadline = asyncio.get_running_loop().time() + 10 * REST_SECONDS
        while await store.get(b"key") is None:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
    await store.close()


@redis_needed
async def test_a_wrong_password_and_damaged_entries_are_misses(
    redis: Server,
) -> None:
    stranger = RedisStore(redis[0], "wrong", 60, PATIENCE)
    assert await stranger.get(b"key") is None
    assert stranger.errors == 1
    await stranger.close()
    store = RedisStore(redis[0], PASSWORD, 60, PATIENCE)
    await store._call("set", b"serin:answer:key", b"no answer")
    assert await store.get(b"key") is None
    assert store.errors == 1
    await store.close()


def test_an_address_that_is_none_of_redis_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cache_url"):
        RedisStore("redis://127.0.0.1:port", None, 60, PATIENCE)


@redis_needed
def test_two_gateways_share_a_redis_and_go_on_without_it(
    world: World,
    redis: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERIN_CACHE_PASSWORD", PASSWORD)
    stable = world.predictor("assistant-00001", "1")
    world.route(stable)
    for expected in ("miss", "hit"):
        process = world.start_gateway(cache_url=redis[0], cache_call_seconds_max=PATIENCE)
        until(world.keeps_answers)
        assert world.ask(temperature=0).headers["x-serin-cache"] == expected
        if expected == "miss":
            process.terminate()
            assert process.wait(15) == 0
    redis[1].kill()
    redis[1].wait()
    answers = [world.ask(temperature=0) for _ in range(5)]
    assert [item.status_code for item in answers] == [200] * 5
    assert [item.headers["x-serin-cache"] for item in answers] == ["miss"] * 5
    assert world.metric("serin_gateway_cache_errors_total") >= 1

"""Token ids become the same text whole or in pieces, and stop strings never leak."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission
from serving.api_errors import ApiError
from serving.engines.text import AnswerText, StopScanner, plain


def decode(rows: Sequence[Sequence[int]]) -> list[str]:
    """A byte-level decoder: one token, one byte."""
    return [bytes(row).decode(errors="replace") for row in rows]


def pieces_of(data: bytes, cuts: Sequence[int], stop: tuple[str, ...] = ()) -> list[str]:
    """Feed bytes in parts of the given sizes, as an engine's steps do."""
    text = AnswerText(stop, incremental=True)
    pieces: list[str] = []
    position, sizes = 0, [*cuts, len(data)]
    for size in sizes:
        part = data[position : position + size]
        position += len(part)
        ended = position >= len(data)
        text.add(list(part))
        delta, stopped = text.accept(decode(text.windows(ended)), ended)
        pieces.append(delta)
        if stopped or ended:
            break
    return pieces


@given(st.text(max_size=60), st.lists(st.integers(1, 5), max_size=200))
def test_pieces_join_to_the_text_and_never_hold_half_a_character(
    said: str, cuts: list[int]
) -> None:
    pieces = pieces_of(said.encode(), cuts)
    assert "".join(pieces) == said
    if "\ufffd" not in said:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=28), st.lists(st.integers(1, 4), max_size=40))
def test_bytes_that_are_no_text_join_to_what_decoding_them_at_once_gives(
    data: bytes, cuts: list[int]
) -> None:
    assert "".join(pieces_of(data, cuts)) == data.decode(errors="replace")


def test_endless_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    pieces = pieces_of(b"\x80" * 400, [1] * 400)
    assert len("".join(pieces[:200])) > 150


@given(
    st.text("ab世", max_size=40),
    st.lists(st.text("ab世", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=130),
)
def test_nothing_from_the_first_stop_string_on_gets_out(
    said: str, stop: list[str], cuts: list[int]
) -> None:
    cut = min((said.find(word) for word in stop if word in said), default=len(said))
    assert "".join(pieces_of(said.encode(), cuts, tuple(stop))) == said[:cut]


def test_what_may_become_a_stop_string_waits() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.scan("go ST", ended=False) == ("go ", False)
    assert scanner.scan("AY S", ended=False) == ("STAY ", False)
    assert scanner.scan("", ended=True) == ("S", False)


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("hello", "hello"),
        ("a<|end|>b", "a< |end|>b"),
        ("<|end|><|end|>", "< |end|>< |end|>"),
        ("<<|end|>|end|>", "<< |end|>|end|>"),
        ("</s>", "< /s>"),
    ],
)
def test_special_names_in_user_text_are_broken(text: str, safe: str) -> None:
    specials = ("<|end|>", "</s>")
    assert plain(text, specials) == safe
    assert not any(name in plain(text, specials) for name in specials)


async def test_slots_are_given_first_come_first_served() -> None:
    admission = Admission(concurrency=2, queue_requests_max=2)
    order: list[str] = []

    async def work(name: str, wanted: int, leave: asyncio.Event) -> None:
        async with admission.slots(wanted):
            order.append(name)
            await leave.wait()

    leave = [asyncio.Event() for _ in range(3)]
    tasks = []
    for name, wanted, event in (
        ("small", 1, leave[0]),
        ("big", 2, leave[1]),
        ("late", 1, leave[2]),
    ):
        tasks.append(asyncio.create_task(work(name, wanted, event)))
        await asyncio.sleep(0)
    assert (order, admission.waiting, admission.running) == (["small"], 2, 1)
    with pytest.raises(ApiError, match="2 requests wait") as caught:
        async with admission.slots(1):
            pass
    assert caught.value.status == 429
    tasks[1].cancel()  # the one in front leaves: the next must not stay behind it
    await asyncio.gather(tasks[1], return_exceptions=True)
    await asyncio.sleep(0)
    assert (order, admission.waiting, admission.running) == (["small", "late"], 0, 2)
    for event in leave:
        event.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.waiting, admission.running) == (0, 0)


async def test_a_slot_given_while_its_owner_leaves_is_not_lost() -> None:
    admission = Admission(concurrency=1, queue_requests_max=5)

    async def hold() -> None:
        async with admission.slots(1):
            await asyncio.sleep(0)

    async with admission.slots(1):
        waiting = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
    waiting[0].cancel()  # its slot was given as this one's block ended
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (admission.waiting, admission.running) == (0, 0)

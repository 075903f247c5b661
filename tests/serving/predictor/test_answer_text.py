"""Token ids become the same text whole or in pieces, and stop strings never leak."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from serving.engines.text import AnswerText, StopScanner


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


@given(st.text(max_size=60), st.lists(st.integers(1, 60), max_size=200))
def test_pieces_join_to_the_text_and_never_hold_half_a_character(
    said: str, cuts: list[int]
) -> None:
    pieces = pieces_of(said.encode(), cuts)
    assert "".join(pieces) == said
    if "\ufffd" not in said:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=28), st.lists(st.integers(1, 20), max_size=40))
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
def test_the_stop_string_that_is_complete_first_ends_the_text_and_stays_inside(
    said: str, stop: list[str], cuts: list[int]
) -> None:
    found = ((said.find(word) + len(word), said.find(word)) for word in stop if word in said)
    cut = min(found, default=(0, len(said)))[1]
    assert "".join(pieces_of(said.encode(), cuts, tuple(stop))) == said[:cut]


def test_what_may_become_a_stop_string_waits() -> None:
    scanner = StopScanner(("STOP",))
    assert scanner.scan("go ST", ended=False) == ("go ", False)
    assert scanner.scan("AY S", ended=False) == ("STAY ", False)
    assert scanner.scan("", ended=True) == ("S", False)

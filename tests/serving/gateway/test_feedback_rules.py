"""Scores: who may give them, which are refused, and where the others count."""

import logging
import os
from pathlib import Path

import msgspec
import pytest

from serving.gateway.balancer import Arm, Service
from serving.gateway.evaluators import Evaluators, hash_token
from serving.gateway.feedback import Counted, Feedback
from serving.gateway.reply import Refusal
from serving.gateway.response_ids import Mark, ResponseIds, make_nonce
from serving.gateway.settlement import Settlement

STABLE = Arm("stable", "r1", "1", 95, ())
CANARY = Arm("canary", "r2", "2", 5, ())
SPLIT = Service("assistant", (STABLE, CANARY), 0.05)
IDS = ResponseIds(b"k" * 32)
TOKEN = "a-random-token"


@pytest.fixture
def settlement() -> Settlement:
    found = Settlement(4, 3600, 1000, 1000)
    found.apply([SPLIT])
    found.draw(SPLIT, CANARY, None)
    return found


def feedback(settlement: Settlement, home: Path = Path("/nowhere"), scored: int = 10) -> Feedback:
    return Feedback(IDS, settlement, Evaluators(home / "feedback.yaml"), scored)


def answer_id(settlement: Settlement, **more: object) -> str:
    """The id of an observed answer of the canary."""
    mark = Mark(
        make_nonce(), settlement.process, "assistant", "canary", "r2", "2", "r1", "r2", 0.05, True
    )
    return IDS.sign(msgspec.structs.replace(mark, **more))


def score(found: Feedback, name: str, value: object = 0.876, **more: object) -> Counted:
    return found.take(msgspec.json.encode({"id": name, "score": value, "source": "s", **more}))


def refused(found: Feedback, body: bytes) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        found.take(body)
    return caught.value.status, caught.value.code


def scores(settlement: Settlement) -> dict[int, int]:
    place = settlement.scored(("assistant", "r2", "r1"), 0.05, "canary")
    assert place is not None
    return place[1].scores


def test_a_score_counts_in_hundredths_for_the_arm_and_stratum(settlement: Settlement) -> None:
    found = feedback(settlement)
    for value in (0.876, 0.884, 0, 1, 1.0):
        assert score(found, answer_id(settlement), value) == Counted(True, "2", "r2")
    assert scores(settlement) == {88: 2, 0: 1, 100: 2}


def test_an_answer_is_scored_once(settlement: Settlement) -> None:
    found = feedback(settlement)
    name = answer_id(settlement)
    score(found, name)
    body = msgspec.json.encode({"id": "chatcmpl-" + name, "score": 0.1, "source": "other"})
    assert refused(found, body) == (409, "scored_already")
    assert scores(settlement) == {88: 1}


@pytest.mark.parametrize(
    "more",
    [{"observed": False}, {"process": "earlier"}, {"canary": "r9"}, {"share": 0.5}],
    ids=["no-observation", "earlier-process", "other-comparison", "undrawn-share"],
)
def test_a_score_outside_a_running_comparison_is_taken_but_not_counted(
    settlement: Settlement, more: dict[str, object]
) -> None:
    found = feedback(settlement)
    name = answer_id(settlement, **more)
    assert score(found, name) == Counted(False, "2", "r2")
    body = msgspec.json.encode({"id": name, "score": 0.1, "source": "s"})
    assert refused(found, body) == (409, "scored_already")
    assert scores(settlement) == {}


def test_a_comparison_that_ended_takes_no_score(settlement: Settlement) -> None:
    found = feedback(settlement)
    name = answer_id(settlement)
    settlement.apply([Service("assistant", (STABLE, CANARY), 0.0)])
    assert not score(found, name).counted
    settlement.apply([SPLIT])
    assert scores(settlement) == {}


def test_beyond_the_memory_nothing_is_counted_twice(settlement: Settlement) -> None:
    found = feedback(settlement, scored=2)
    names = [answer_id(settlement) for _ in range(3)]
    assert all(score(found, name).counted for name in names[:2])
    body = msgspec.json.encode({"id": names[2], "score": 1, "source": "s"})
    assert refused(found, body) == (503, "feedback_full")
    assert sum(scores(settlement).values()) == 2
    assert not score(found, answer_id(settlement, observed=False)).counted


def test_scores_that_are_not_counted_never_fill_the_memory(settlement: Settlement) -> None:
    found = feedback(settlement, scored=3)
    assert not any(score(found, answer_id(settlement, observed=False)).counted for _ in range(50))
    assert score(found, answer_id(settlement)).counted


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b'{"id": "x"}', b'{"id": "x", "score": NaN, "source": "s"}',
        b'{"id": "x", "score": 1e999, "source": "s"}', b'{"id": "x", "score": -1, "source": "s"}',
        b'{"id": "x", "score": 1.001, "source": "s"}', b'{"id": "x", "score": "1", "source": "s"}',
        b'{"id": "x", "score": true, "source": "s"}', b'{"id": "x", "score": 1, "source": ""}',
        b'{"id": "x", "score": 1, "source": "s", "y": 1}', b'{"id": 5, "score": 1, "source": "s"}',
        b'{"id": "\xff", "score": 1, "source": "s"}', b"[" * 3000,
    ],
)  # fmt: skip
def test_what_is_no_score_is_refused(settlement: Settlement, text: bytes) -> None:
    assert refused(feedback(settlement), text)[0] == 400


def test_an_id_that_was_not_signed_is_unknown(settlement: Settlement) -> None:
    forged = ResponseIds(b"x" * 32).sign(Mark(b"n" * 12, settlement.process, "assistant", *"abc"))
    for name in ("", "chatcmpl-123", forged, answer_id(settlement)[:-2] + "xx"):
        body = msgspec.json.encode({"id": name, "score": 1, "source": "s"})
        assert refused(feedback(settlement), body) == (404, "unknown_id")


def admission(found: Feedback, authorization: bytes | None = None) -> int:
    """The status of the refusal; 0 without one."""
    headers = {} if authorization is None else {b"authorization": authorization}
    try:
        found.authenticate(headers)
    except Refusal as refusal:
        return refusal.status
    return 0


def write(home: Path, text: str) -> None:
    temporary = home / "feedback.new"
    temporary.write_text(text)
    os.replace(temporary, home / "feedback.yaml")


def test_evaluators_come_and_go_with_the_file(settlement: Settlement, tmp_path: Path) -> None:
    found = feedback(settlement, tmp_path)
    ours = f"Bearer {TOKEN}".encode()
    assert admission(found, ours) == 403
    write(tmp_path, f"judge: {hash_token('another')}\n")
    assert admission(found, ours) == 401
    write(tmp_path, f"judge: {hash_token('another')}\nours: {hash_token(TOKEN)}\n")
    assert admission(found, ours) == 0
    (tmp_path / "feedback.yaml").unlink()
    assert admission(found, ours) == 403


@pytest.mark.parametrize(
    "authorization",
    [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic " + TOKEN.encode(), b"\xff\xfe",
     TOKEN.encode(), b"Bearer " + hash_token(TOKEN).encode()],
)  # fmt: skip
def test_nobody_else_is_admitted(
    settlement: Settlement, tmp_path: Path, authorization: bytes | None
) -> None:
    write(tmp_path, f"ours: {hash_token(TOKEN)}\n")
    assert admission(feedback(settlement, tmp_path), authorization) == 401


@pytest.mark.parametrize(
    "text",
    ["", "ours", "- a", "ours: short", "ours: 12", f"{TOKEN}: 1", "ours: [", f"a: &x\n {TOKEN}: *y",
     "[" * 5000, "a: " + "b" * 70_000],
)  # fmt: skip
def test_a_file_that_is_wrong_admits_nobody_and_leaks_nothing(
    settlement: Settlement, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = feedback(settlement, tmp_path)
    write(tmp_path, f"ours: {hash_token(TOKEN)}\n")
    assert admission(found, f"Bearer {TOKEN}".encode()) == 0
    write(tmp_path, text)
    with caplog.at_level(logging.DEBUG):
        assert admission(found, f"Bearer {TOKEN}".encode()) == 403
    assert TOKEN not in caplog.text

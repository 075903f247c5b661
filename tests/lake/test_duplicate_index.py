"""The duplicate index: what is found and what is left alone, over batches, restarts and kills."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from benchmarks.support.duplicate_texts import LANGUAGES, Writer, jaccard
from core.errors import ConflictError
from lake.config import DuplicatesConfig
from lake.duplicates import DuplicateIndex, IndexRow, Verdict

CONFIG = DuplicatesConfig()
Open = Callable[..., DuplicateIndex]


def row(text: str, answer: str = "ok") -> IndexRow:
    return IndexRow(sha256(f"{text}\n{answer}".encode()).hexdigest(), text, answer)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    indexes: list[DuplicateIndex] = []

    def opened_index(
        config: DuplicatesConfig = CONFIG, barred: tuple[str, ...] = ()
    ) -> DuplicateIndex:
        while indexes:
            indexes.pop().close()
        indexes.append(DuplicateIndex(tmp_path / "index", config, barred.__contains__))
        return indexes[-1]

    yield opened_index
    while indexes:
        indexes.pop().close()


def take(index: DuplicateIndex, batch: str, rows: list[IndexRow]) -> list[Verdict]:
    verdicts = index.look(batch, rows)
    index.commit(batch)
    return verdicts


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_duplicates_of_history_are_found_and_others_left_alone(
    opened: Open, language: str
) -> None:
    writer = Writer.of(language, 5)
    texts = [writer.text() for _ in range(1500)]
    changed = [writer.near(text, 1 + place % 8) for place, text in enumerate(texts[:500])]
    similar = [jaccard(one, other) for one, other in zip(texts, changed, strict=False)]
    index = opened()
    assert set(take(index, "one", [row(text) for text in texts])) == {"new"}
    fresh = [writer.text() for _ in range(500)]
    told = take(index, "two", [row(text) for text in changed + fresh])
    near = [verdict != "new" for verdict, value in zip(told, similar, strict=False) if value >= 0.8]
    assert len(near) > 100
    assert sum(near) / len(near) >= 0.98
    wrong = [verdict for verdict, value in zip(told, similar, strict=False) if value < 0.7]
    wrong += told[500:]
    assert sum(verdict != "new" for verdict in wrong) <= 0.01 * (sum(near) + len(wrong))
    assert set(told[500:]) == {"new"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_within_a_batch_the_first_of_similar_rows_stays(opened: Open, language: str) -> None:
    writer = Writer.of(language, 6)
    texts = [writer.text() for _ in range(60)]
    rows = [row(text) for text in texts]
    told = opened().look("one", [*rows, row(writer.near(texts[3], 1)), rows[5], rows[5]])
    assert told == ["new"] * 60 + ["near", "exact", "exact"]


def test_case_space_and_marks_do_not_make_a_row_new(opened: Open) -> None:
    text = Writer.of("en", 7).text()
    loud = "  " + text.upper().replace(".", " !\n")
    assert opened().look("one", [row(text), row(loud)]) == ["new", "near"]


def test_short_rows_are_duplicates_only_when_they_are_equal(opened: Open) -> None:
    rows = [row("book a flight to Rome"), row("book a flight to Nome"), row("订一张去罗马的机票")]
    index = opened()
    assert index.look("one", [*rows, rows[0]]) == ["new", "new", "new", "exact"]
    assert index.look("two", [row("Book a flight to Rome!")]) == ["new"]


def test_rows_with_different_labels_are_never_near_duplicates(opened: Open) -> None:
    text = Writer.of("en", 8).text()
    rows = [row(text, "refund"), row(text + " please", "delivery"), row(text + " please", "refund")]
    assert opened().look("one", rows) == ["new", "new", "near"]


def test_near_matching_can_be_switched_off(opened: Open) -> None:
    text = Writer.of("en", 9).text()
    index = opened(DuplicatesConfig(near=False))
    assert index.look("one", [row(text), row(text + " please"), row(text)]) == [
        "new", "new", "exact",
    ]  # fmt: skip


def test_a_batch_counts_for_the_next_ones_before_its_commit(opened: Open) -> None:
    text = Writer.of("en", 10).text()
    index = opened()
    assert index.look("one", [row(text)]) == ["new"]
    assert index.look("two", [row(text), row(text + " please")]) == ["exact", "near"]


def test_looking_again_at_a_batch_replaces_what_it_staged(opened: Open) -> None:
    index = opened()
    assert index.look("one", [row("a"), row("b")]) == ["new", "new"]
    assert index.look("one", [row("a"), row("c")]) == ["new", "new"]
    index.commit("one")
    assert index.look("two", [row("a"), row("b"), row("c")]) == ["exact", "new", "exact"]
    with pytest.raises(ConflictError):
        index.look("one", [row("a")])


def test_after_a_restart_only_batches_that_the_lake_has_count(opened: Open) -> None:
    index = opened()
    take(index, "done", [row("done")])
    take(index, "undone by a restored lake", [row("restored")])
    index.look("in the lake, not marked", [row("kept")])
    index.look("not in the lake", [row("lost")])
    index = opened()
    in_lake = {"done", "in the lake, not marked", "only in the lake"}
    index.recover(in_lake.__contains__)
    assert index.missing(sorted(in_lake)) == ["only in the lake"]
    index.restore("only in the lake", [row("older")])
    rows = [row(text) for text in ("done", "restored", "kept", "lost", "older")]
    assert index.look("next", rows) == ["exact", "new", "exact", "new", "exact"]


def test_barred_batches_do_not_count_and_count_again_later(opened: Open) -> None:
    text = Writer.of("en", 11).text()
    take(opened(), "poisoned", [row(text), row("short")])
    index = opened(barred=("poisoned",))
    assert take(index, "corrected", [row("short"), row(text + " please")]) == ["new", "new"]
    assert opened().look("again", [row("short"), row(text)]) == ["exact", "exact"]


def test_forgotten_rows_leave_nothing_behind(opened: Open, tmp_path: Path) -> None:
    writer = Writer.of("en", 12)
    texts = [writer.text() for _ in range(50)]
    index = opened()
    for batch in range(5):
        take(index, str(batch), [row(text) for text in texts[batch * 10 : batch * 10 + 10]])
    size = index.size()
    assert index.forget([row(texts[7]).digest, row(texts[44]).digest, row("unknown").digest]) == 2
    assert index.size().documents == size.documents - 2
    assert index.size().near_documents == size.near_documents - 2
    key = bytes.fromhex(row(texts[7]).digest[:16])[::-1]
    held = [path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert not any(key in content for content in held)
    told = index.look("later", [row(texts[7] + " please"), row(texts[8]), row(texts[44])])
    assert told == ["new", "exact", "new"]


def test_many_batches_become_few_segments_and_lose_nothing(opened: Open, tmp_path: Path) -> None:
    writer = Writer.of("en", 13)
    texts = [writer.text() for _ in range(400)]
    index = opened()
    for batch in range(100):
        take(index, str(batch), [row(text) for text in texts[batch * 4 : batch * 4 + 4]])
    assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) <= 16
    index = opened()
    assert set(index.look("exact", [row(text) for text in texts])) == {"exact"}
    assert set(index.look("near", [row(text + " please") for text in texts])) == {"near"}


def test_the_windows_bound_the_index(opened: Open) -> None:
    writer = Writer.of("en", 14)
    config = DuplicatesConfig(near_window_documents=1000, exact_window_documents=2000)
    texts = [writer.text(40, 50) for _ in range(4000)]
    index = opened(config)
    for batch in range(40):
        take(index, str(batch), [row(text) for text in texts[batch * 100 : batch * 100 + 100]])
    size = index.size()
    assert 1000 <= size.near_documents <= 1250
    assert 2000 <= size.documents <= 2500
    recent = index.look("recent", [row(texts[-900]), row(texts[-900] + " please")])
    assert recent == ["exact", "near"]
    assert index.look("old", [row(texts[0]), row(texts[1500] + " please")]) == ["new", "new"]


@pytest.mark.parametrize("damage", ["manifest", "segment", "segment cut", "everything"])
def test_a_damaged_index_starts_empty_and_is_restored(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "index"
    index = DuplicateIndex(folder, CONFIG)
    take(index, "one", [row("a")])
    index.close()
    keys = next(folder.glob("*/keys"))
    if damage == "manifest":
        (folder / "index.sqlite").write_bytes(b"not a database" * 100)
    elif damage == "segment":
        keys.unlink()
    elif damage == "segment cut":
        keys.write_bytes(keys.read_bytes()[:-1])
    else:
        for path in [*folder.glob("*/*"), folder / "index.sqlite"]:
            path.unlink()
    index = DuplicateIndex(folder, CONFIG)
    assert index.missing(["one"]) == ["one"]
    index.restore("one", [row("a")])
    assert index.look("two", [row("a"), row("b")]) == ["exact", "new"]
    index.close()


def test_one_process_uses_an_index_at_a_time(opened: Open, tmp_path: Path) -> None:
    opened()
    with pytest.raises(ConflictError):
        DuplicateIndex(tmp_path / "index", CONFIG)


KILLED = """
import sys
from hashlib import sha256
from pathlib import Path
from lake.config import DuplicatesConfig
from lake.duplicates import DuplicateIndex, IndexRow
index = DuplicateIndex(Path(sys.argv[1]), DuplicatesConfig(near_bytes_min=90))
for batch in range(100000):
    digests = [f"{batch * 100 + n:064x}"[::-1] for n in range(100)]
    rows = [IndexRow(d, sha256(d.encode()).hexdigest() * 2) for d in digests]
    index.look(str(batch), rows)
    print(batch, flush=True)
    index.commit(str(batch))
"""


@pytest.mark.parametrize("after", [3, 17, 40])
def test_a_killed_process_leaves_a_usable_index(tmp_path: Path, after: int) -> None:
    folder = tmp_path / "index"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == after:
            os.kill(process.pid, signal.SIGKILL)
            break
    staged = max([after, *(int(line) for line in process.stdout)])
    process.wait()
    index = DuplicateIndex(folder, CONFIG)
    index.recover(lambda batch: int(batch) < staged)
    assert index.missing([str(batch) for batch in range(staged)]) == []
    rows = [IndexRow(f"{place:064x}"[::-1], "short") for place in range(staged * 100 + 100)]
    assert index.look("again", rows) == ["exact"] * staged * 100 + ["new"] * 100
    index.close()

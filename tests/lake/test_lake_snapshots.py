"""Snapshots are named by their content; flags and passes decide what is new and what is used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lake_rows import Row, make_rows, plain_check

from core.contracts import SnapshotRef
from core.errors import IntegrityError, NotFoundError
from lake.snapshots import (
    create_snapshot,
    earlier_held_out,
    earlier_rows,
    find_snapshot,
    flag_snapshot,
    flagged_versions,
    flags,
    load_held_out,
    load_rows,
    mark_passed,
    old_snapshots,
    passed_versions,
    readmit,
)
from lake.sources import IngestConfig, list_days
from lake.table import Lake

Arrive = Callable[[int], int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


@pytest.fixture
def arrive(lake: Lake, config: IngestConfig, write_day: Callable[[int, list[Row]], Path]) -> Arrive:
    def take_in(day: int) -> int:
        path = write_day(day, make_rows(30, 100 * day))
        return lake.ingest_day(list_days(str(path)).days[0], config, plain_check).version

    return take_in


def cut(lake: Lake, folder: Path, after: int | None = None) -> SnapshotRef:
    ref = create_snapshot(lake, after, flagged_versions(folder), folder, rows_min=5)
    assert ref is not None
    return ref


def test_a_snapshot_splits_rows_and_loads_them_back(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    arrive(1)
    ref = cut(lake, folder)
    training, held_out = load_rows(ref), load_held_out(ref)
    assert (len(training), len(held_out)) == (ref.rows, ref.held_out_rows)
    assert len(training) + len(held_out) == 30
    assert not {row.record_id for row in training} & {row.record_id for row in held_out}
    assert (ref.version_first, ref.version_last, ref.days) == (1, 1, ("day-1",))
    assert training[0].prompt.startswith("question number 1")
    assert find_snapshot(folder, ref.snapshot_id[:8]) == ref
    with pytest.raises(NotFoundError):
        find_snapshot(folder, "nothing")


def test_the_same_rows_give_the_same_snapshot(
    lake: Lake, folder: Path, tmp_path: Path, arrive: Arrive
) -> None:
    arrive(1)
    ref = cut(lake, folder)
    before = (Path(ref.uri) / "training.parquet").stat().st_mtime_ns
    assert cut(lake, folder) == ref
    assert (Path(ref.uri) / "training.parquet").stat().st_mtime_ns == before
    elsewhere = cut(lake, tmp_path / "elsewhere")
    assert elsewhere.snapshot_id == ref.snapshot_id
    assert load_rows(elsewhere) == load_rows(ref)


def test_too_few_new_rows_are_no_snapshot(lake: Lake, folder: Path, arrive: Arrive) -> None:
    assert create_snapshot(lake, None, (), folder, 5) is None
    version = arrive(1)
    assert create_snapshot(lake, None, (), folder, 31) is None
    assert create_snapshot(lake, version, (), folder, 1) is None
    assert create_snapshot(lake, None, [version], folder, 1) is None


def test_a_changed_snapshot_file_is_refused(lake: Lake, folder: Path, arrive: Arrive) -> None:
    arrive(1)
    ref = cut(lake, folder)
    (Path(ref.uri) / "training.parquet").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="changed"):
        load_rows(ref)
    with pytest.raises(NotFoundError):
        load_rows(replace(ref, uri=str(folder / "gone")))


def test_a_good_day_that_was_not_released_stays_new(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    stable_end = arrive(1)
    arrive(2)
    mark_passed(folder, cut(lake, folder, stable_end))
    arrive(3)
    ref = cut(lake, folder, stable_end)
    assert ref.days == ("day-2", "day-3")
    assert {row.day for row in load_rows(ref)} == {"day-2", "day-3"}


def test_a_flagged_day_never_comes_back_but_the_next_days_do(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    stable_end = arrive(1)
    bad = arrive(2)
    assert flag_snapshot(folder, cut(lake, folder, stable_end), ["labels"]) == (bad,)
    assert create_snapshot(lake, stable_end, flagged_versions(folder), folder, 1) is None
    arrive(3)
    ref = cut(lake, folder, stable_end)
    assert ref.days == ("day-3",)
    flagged = flagged_versions(folder)
    days = {row.day for row in earlier_rows(lake, 10, flagged)}
    assert days == {"day-1", "day-3"}
    assert "day-2" not in {row.day for row in earlier_held_out(lake, 10, flagged)}
    assert [(mark.days, mark.reasons) for mark in flags(folder)] == [(("day-2",), ("labels",))]


def test_flagging_blames_only_days_that_nobody_vouched_for(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    first = arrive(1)
    mark_passed(folder, cut(lake, folder))
    second = arrive(2)
    assert flag_snapshot(folder, cut(lake, folder), ["drift"]) == (second,)
    assert flagged_versions(folder) == {second}
    assert passed_versions(folder) == {first}
    assert cut(lake, folder).days == ("day-1",)


def test_a_readmitted_day_is_new_again_even_behind_stable(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    arrive(1)
    bad = arrive(2)
    ref = cut(lake, folder, 1)
    flag_snapshot(folder, ref, ["labels"])
    stable_end = arrive(3)
    assert readmit(folder, ref.snapshot_id[:10]).versions == (bad,)
    assert flagged_versions(folder) == set()
    again = cut(lake, folder, stable_end)
    assert again.days == ("day-2",)
    arrive(4)
    both = cut(lake, folder, stable_end)
    assert both.days == ("day-2", "day-4")
    mark_passed(folder, both)
    assert create_snapshot(lake, both.version_last, (), folder, 1) is None
    with pytest.raises(NotFoundError):
        readmit(folder, ref.snapshot_id)


def test_a_readmitted_snapshot_that_fails_again_is_flagged_again(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    bad = arrive(1)
    ref = cut(lake, folder)
    flag_snapshot(folder, ref, ["labels"])
    readmit(folder, ref.snapshot_id)
    flag_snapshot(folder, ref, ["labels, still"])
    assert flagged_versions(folder) == {bad}
    assert create_snapshot(lake, None, flagged_versions(folder), folder, 1) is None


def test_replay_draws_the_same_rows_again_within_its_limit(lake: Lake, arrive: Arrive) -> None:
    arrive(1)
    arrive(2)
    drawn = earlier_rows(lake, 3, (), rows_max=10)
    assert len(drawn) == 10
    assert drawn == earlier_rows(lake, 3, (), rows_max=10)
    assert {row.day for row in drawn} == {"day-1", "day-2"}
    assert {row.day for row in earlier_rows(lake, 2, ())} == {"day-1"}


def test_old_snapshots_go_unless_something_stands_on_them(
    lake: Lake, folder: Path, arrive: Arrive
) -> None:
    refs = []
    for day in (1, 2, 3):
        arrive(day)
        refs.append(cut(lake, folder))
    doomed = old_snapshots(folder, protected=[refs[0].snapshot_id], keep=1)
    assert doomed == [Path(refs[1].uri)]
    assert Path(refs[1].uri).exists()
    old_snapshots(folder, protected=[refs[0].snapshot_id], keep=1, dry_run=False)
    assert [Path(ref.uri).exists() for ref in refs] == [True, False, True]

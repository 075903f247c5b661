"""The training budget: which rows are chosen, and that the choice can be made again."""

import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from lake_rows import make_rows, plain_check

from benchmarks.support.duplicate_texts import Writer
from lake.config import SelectionConfig
from lake.selection import OVERSAMPLE, plan_draw, quality, quotas, select
from lake.snapshots import create_snapshot, read_manifest
from lake.sources import IngestConfig, list_days
from lake.table import Lake

Row = dict[str, Any]


def row(prompt: str, slice_name: str = "a", response: str = "a fitting answer") -> Row:
    digest = sha256(prompt.encode()).hexdigest()
    return {"prompt": prompt, "response": response, "slice_name": slice_name,
            "content_digest": digest}  # fmt: skip


def chosen(config: SelectionConfig, rows: list[Row]) -> set[str]:
    before: dict[str, int] = {}
    for item in rows:
        before[item["slice_name"]] = before.get(item["slice_name"], 0) + 1
    mask, told = select(config, rows, before)
    assert told.rows_chosen == mask.sum()
    assert told.rows_before == len(rows)
    return {item["content_digest"] for item, taken in zip(rows, mask, strict=True) if taken}


@pytest.fixture
def writer() -> Writer:
    return Writer.of("en", 21)


def test_the_choice_does_not_depend_on_the_order_of_the_rows(writer: Writer) -> None:
    rows = [row(writer.text(), f"s{place % 3}") for place in range(300)]
    config = SelectionConfig(rows_max=60, slice_rows_min=5)
    first = chosen(config, rows)
    random.Random(1).shuffle(rows)
    assert chosen(config, rows) == first
    assert len(first) == 60
    assert chosen(config.model_copy(update={"seed": 8}), rows) != first


def test_clusters_give_one_row_before_any_gives_a_second(writer: Writer) -> None:
    singles = [row(writer.text()) for _ in range(40)]
    text = writer.text()
    crowd = [row(f"{text} {number}") for number in range(200)]
    config = SelectionConfig(rows_max=41, slice_rows_min=0)
    found = chosen(config, crowd + singles)
    assert {item["content_digest"] for item in singles} <= found
    assert len(found) == 41
    few = config.model_copy(update={"rows_max": 100, "cluster_rows_max": 3})
    assert len(chosen(few, crowd + singles)) == 43


def test_broken_rows_are_left_out_and_good_ones_preferred(writer: Writer) -> None:
    good = [row(writer.text()) for _ in range(50)]
    broken = [row("buy now " * 60 + str(place)) for place in range(50)]
    broken += [row("#$%^&*()!" * 20 + str(place)) for place in range(20)]
    found = chosen(SelectionConfig(rows_max=50, slice_rows_min=0), broken + good)
    assert found == {item["content_digest"] for item in good}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("how do I return a lamp", "lamp lamp lamp lamp lamp lamp lamp"),
        ("请问我的订单什么时候能够发货", "！！！？？？。。。、、、"),
        ("where is my parcel, it is late", "ab"),
    ],
)
def test_quality_tells_broken_text(better: str, worse: str) -> None:
    assert quality(better, "an answer") > quality(worse, "ok")
    assert quality(better, "") == 0


def test_quotas_keep_small_slices_and_spend_the_whole_budget() -> None:
    slices = {"big": 10_000, "small": 30, "tiny": 3}
    found = quotas(SelectionConfig(rows_max=1000, slice_rows_min=20), slices)
    assert found["tiny"] == 3
    assert found["small"] >= 20
    assert sum(found.values()) == 1000
    shared = SelectionConfig(rows_max=1000, slice_rows_min=0, slice_shares={"small": 100.0})
    assert quotas(shared, slices)["small"] == 30
    assert sum(quotas(shared, slices).values()) == 1000
    assert quotas(SelectionConfig(), slices) == slices
    assert sum(quotas(SelectionConfig(rows_max=2), slices).values()) == 2
    assert quotas(SelectionConfig(rows_max=5, slice_shares={"big": 0.0}), {"big": 9}) == {"big": 0}


def test_the_draw_is_a_bounded_share_that_keeps_rare_slices() -> None:
    config = SelectionConfig(rows_max=1000, slice_rows_min=50)
    slices = {"big": 200_000, "rare": 60}
    draw = plan_draw(config, slices)

    def drawn(slice_name: str, held_out: bool) -> int:
        rows = ({"slice_name": slice_name, "held_out": held_out, "content_digest": digest}
                for digest in digests)  # fmt: skip
        return sum(draw.takes(row) for row in rows)

    digests = [sha256(str(place).encode()).hexdigest() for place in range(20_000)]
    share = 950 / 200_000
    assert drawn("big", held_out=False) == pytest.approx(20_000 * OVERSAMPLE * share, rel=0.2)
    assert drawn("big", held_out=True) == pytest.approx(20_000 * share, rel=0.4)
    assert drawn("rare", held_out=False) >= 19_000


def test_a_snapshot_keeps_to_the_budget_and_says_how(
    lake: Lake, config: IngestConfig, write_day: Callable[[int, list[Row]], Path], tmp_path: Path
) -> None:
    write_day(1, [*make_rows(400), *make_rows(30, first=400, domain="rare")])
    lake.ingest_day(list_days(config.data).days[0], config, lambda rows, now: plain_check(rows))
    budget = SelectionConfig(rows_max=60, slice_rows_min=10)
    folder = tmp_path / "snapshots"
    ref = create_snapshot(lake, None, (), folder, 5, budget)
    assert ref is not None
    assert ref.rows == 60
    assert 0 < ref.held_out_rows < 30
    told = read_manifest(ref).selection
    assert told is not None
    assert told.settings == budget.model_dump(mode="json")
    assert told.rows_chosen == 60
    assert told.slices["rare"][1] >= 10
    assert create_snapshot(lake, None, (), tmp_path / "again", 5, budget) is not None
    assert [*(tmp_path / "again").glob(f"{ref.snapshot_id}/snapshot.json")]
    whole = create_snapshot(lake, None, (), folder, 5)
    assert whole is not None
    assert whole.rows > 350
    assert read_manifest(whole).selection is None

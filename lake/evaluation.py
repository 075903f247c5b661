"""On which rows a candidate is judged: never on those that only its own day vouches for.

Knows which rows count and why; asks no model.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.contracts import Record, SnapshotRef
from core.digests import digest_bytes, digest_json
from core.errors import InputError
from lake.cleaning import clean, shape
from lake.config import EvaluationConfig, IngestConfig
from lake.consistency import SliceConsistency, slice_consistency
from lake.preparation import CheckRows, require_fields
from lake.replay import earlier_held_out
from lake.sensitive import replacement
from lake.snapshots import (
    flagged_versions,
    load_held_out,
    load_rows,
    passed_versions,
    read_manifest,
)
from lake.sources import day_blocks, list_days
from lake.table import Lake

EVALUATION_DAY = "evaluation"


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """The rows to judge on. `new_slices` are those judged on the new days' own held-out rows.

    `refused_slices` tells of every other new slice why it does not count; `rows_by_origin` counts
    rows before the draw of at most `rows_max`.
    """

    records: tuple[Record, ...]
    new_slices: tuple[str, ...]
    refused_slices: Mapping[str, str]
    consistency: Mapping[str, SliceConsistency]
    rows_by_origin: Mapping[str, int]


def evaluation_set(
    config: IngestConfig, lake: Lake, ref: SnapshotRef, folder: Path, check: CheckRows
) -> EvaluationSet:
    """Choose the rows on which a candidate trained on snapshot `ref` is judged.

    These count: the evaluation file (when configured), held-out rows of earlier days and of those
    days in the snapshot that passed before; of the other days only slices never seen before, and
    only when their answers agree with those of like prompts. `folder` holds the snapshots and
    marks. Raises InputError when the evaluation file cannot be used.
    """
    flagged = flagged_versions(folder)
    passed = passed_versions(folder)
    versions = read_manifest(ref).versions
    vouched = {day for version, day in versions.items() if version in passed}
    vouched -= {day for version, day in versions.items() if version not in passed}
    before = [entry.version for entry in lake.versions() if entry.version < ref.version_first]
    training, own = load_rows(ref), load_held_out(ref)
    known = lake.slice_names([version for version in before if version not in flagged])
    outside: list[Record] = []
    if config.evaluation.uri:
        trained = known | {row.slice_name for row in training}
        outside = read_evaluation(config, check, trained)
        erased = lake.erased_among(row.record_id for row in outside)
        outside = [row for row in outside if row.record_id not in erased]
    return choose_rows(
        config.evaluation,
        outside=outside,
        earlier=earlier_held_out(lake, ref.version_first, flagged),
        training=training,
        own=own,
        known_slices=known,
        vouched_days=vouched,
    )


def choose_rows(
    config: EvaluationConfig,
    *,
    outside: Sequence[Record],
    earlier: Sequence[Record],
    training: Sequence[Record],
    own: Sequence[Record],
    known_slices: Iterable[str],
    vouched_days: Iterable[str],
) -> EvaluationSet:
    """Apply the rule of `evaluation_set` to rows in memory (a pure function).

    `training` and `own` are the snapshot's training and held-out rows.
    """
    days = set(vouched_days)
    vouched = [row for row in own if row.day in days]
    fresh = [row for row in own if row.day not in days]
    known = {*known_slices, *(row.slice_name for row in (*outside, *earlier))}
    known |= {row.slice_name for row in (*training, *own) if row.day in days}
    own_rows = Counter(row.slice_name for row in fresh if row.slice_name not in known)
    all_fresh = [*(row for row in training if row.day not in days), *fresh]
    new = sorted({row.slice_name for row in all_fresh} - known)
    consistency = slice_consistency(all_fresh, new, config) if new else {}
    refused = {
        name: reason
        for name in new
        if (reason := _why_not(consistency[name], own_rows[name], config))
    }
    counted = [row for row in fresh if row.slice_name in set(new) - refused.keys()]
    origins = {
        "evaluation file": list(outside),
        "earlier days": list(earlier),
        "passed days": vouched,
        "new slices": counted,
    }
    rows = _distinct([row for part in origins.values() for row in part])
    return EvaluationSet(
        records=tuple(draw_evenly(rows, config.rows_max, config.seed)),
        new_slices=tuple(name for name in new if name not in refused),
        refused_slices=refused,
        consistency=consistency,
        rows_by_origin={name: len(part) for name, part in origins.items()},
    )


def read_evaluation(config: IngestConfig, check: CheckRows, slices: Iterable[str]) -> list[Record]:
    """Read the evaluation file by the same mapping, contract and cleaning as a day.

    Rows that break the contract are left out; with `known_slices_only` so are rows of other
    slices than `slices`. Raises InputError when nothing is left.
    """
    allowed = set(slices) if config.evaluation.known_slices_only else None
    day_file = replace(list_days(config.evaluation.uri).days[0], day=EVALUATION_DAY)
    found: list[Record] = []
    for block in day_blocks(day_file, config):
        rows = block.decoded(config.row_bytes_max)
        if not found:
            require_fields(rows, config, day_file.name)
        shaped = [shape(row.value, config.mapping) for row in rows if row.value is not None]
        refused = {item.index for item in check([row.checked for row in shaped], time.time())}
        usable = [
            row
            for index, row in enumerate(shaped)
            if index not in refused and row.turns is not None
        ]
        for ready in clean(usable, replacement(config)):
            if not ready.dropped and (allowed is None or ready.slice_name in allowed):
                found.append(
                    Record(
                        record_id=ready.record_id,
                        day=EVALUATION_DAY,
                        created_at=ready.created_at,
                        slice_name=ready.slice_name,
                        messages=ready.messages,
                        response=ready.response,
                    )
                )
    if not found:
        raise InputError(
            f"no row of {config.evaluation.uri} can be used; check its fields and that its slices "
            f"are among {sorted(slices)[:20]}"
        )
    return found


def draw_evenly(rows: Sequence[Record], rows_max: int, seed: int) -> list[Record]:
    """Draw at most `rows_max` rows, as evenly over the slices as they last, in a fixed order."""
    by_slice: dict[str, list[Record]] = defaultdict(list)
    keyed = sorted(rows, key=lambda row: digest_bytes(f"{seed}:{row.record_id}".encode()))
    for row in keyed:
        by_slice[row.slice_name].append(row)
    drawn: list[Record] = []
    left = rows_max
    smallest_first = sorted(by_slice.values(), key=len)
    for index, part in enumerate(smallest_first):
        share = min(len(part), -(-left // (len(smallest_first) - index)))
        drawn += part[:share]
        left -= share
    return sorted(drawn, key=lambda row: (row.slice_name, row.day, row.record_id))


def _why_not(found: SliceConsistency, rows: int, config: EvaluationConfig) -> str:
    if rows < config.own_rows_min:
        return f"only {rows} held-out rows, {config.own_rows_min} are needed"
    if found.outcome == "unknown":
        return f"too few like prompts to tell ({found.pairs} pairs, {config.pairs_min} are needed)"
    if found.outcome == "inconsistent":
        return f"like prompts have different answers (agreement {found.agreement:.2f})"
    return ""


def _distinct(rows: Sequence[Record]) -> list[Record]:
    seen: set[str] = set()
    kept: list[Record] = []
    for row in rows:
        turns = [[turn.role, turn.content] for turn in row.messages]
        digest = digest_json([turns, row.response])
        if digest not in seen:
            seen.add(digest)
            kept.append(row)
    return kept

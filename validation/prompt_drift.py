"""How live prompts differ from those trained on: counts of features, compared by Evidently.

Sees counts over many prompts only (core/words.py), never a prompt.
"""

import os
from collections import Counter
from collections.abc import Mapping

from validation.health import Reading

Features = Mapping[str, Mapping[str, float]]
"""{feature: {bucket: count}}."""
ROWS_PER_FEATURE = 2000


def prompt_drift(
    live: Features, trained: Features, prompts: float, trained_prompts: float, prompts_min: int
) -> Reading:
    """Return the largest Jensen-Shannon distance (0 to 0.83) of script, length and words.

    Evidently compares columns of values, so each count becomes a proportional number of rows.
    """
    counted = {"prompts": prompts, "trained_prompts": trained_prompts}
    if min(prompts, trained_prompts) < prompts_min:
        return Reading(why=f"fewer than {prompts_min} prompts on one side", detail=counted)
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    distances: dict[str, float] = {}
    for feature in sorted(live.keys() & trained.keys()):
        definition = DataDefinition(categorical_columns=[feature])
        new, old = (
            Dataset.from_pandas(pandas.DataFrame({feature: rows}), data_definition=definition)
            for rows in (_rows(live[feature]), _rows(trained[feature]))
        )
        metric = ValueDrift(column=feature, method="jensenshannon", threshold=1.0)
        run = Report([metric]).run(new, old)
        distances[feature] = float(run.dict()["metrics"][0]["value"])
    if not distances:
        return Reading(why="no feature is known on both sides", detail=counted)
    rounded = {name: round(value, 4) for name, value in distances.items()}
    return Reading(max(distances.values()), detail={**counted, **rounded})


def _rows(counts: Mapping[str, float]) -> list[str]:
    whole = sum(counts.values())
    found: Counter[str] = Counter()
    for bucket, count in counts.items():
        found[bucket] = max(1, round(ROWS_PER_FEATURE * count / whole)) if count else 0
    return list(found.elements())

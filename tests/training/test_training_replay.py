"""Replay: the configured share, balanced, the same for a seed."""

from collections import Counter

import pytest

from core.contracts import Message, Record
from training.config import TrainConfig
from training.replay import choose_replay, replay_count


def rows(count: int, response: str, day: str = "day-1") -> list[Record]:
    return [
        Record(f"{day}-{response}-{n}", day, "", "s", (Message("user", f"q{n}"),), response)
        for n in range(count)
    ]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 100), (0.75, 300), (0.2, 25)])
def test_replay_is_the_share_of_all_training_rows(share: float, count: int) -> None:
    assert replay_count(100, TrainConfig(replay_share=share)) == count


def test_replay_has_a_named_limit() -> None:
    assert replay_count(1000, TrainConfig(replay_share=0.9, replay_rows_max=50)) == 50


def test_rare_answers_are_replayed_as_often_as_common_ones() -> None:
    earlier = [*rows(500, "common"), *rows(20, "rare"), *rows(300, "usual")]
    chosen = choose_replay(rows(60, "new", "day-2"), earlier, TrainConfig(replay_share=0.5))
    assert Counter(row.response for row in chosen) == {"common": 20, "rare": 20, "usual": 20}


def test_an_answer_with_too_few_rows_leaves_its_places_to_others() -> None:
    chosen = choose_replay(
        rows(20, "new", "day-2"),
        [*rows(3, "rare"), *rows(90, "common")],
        TrainConfig(replay_share=0.5),
    )
    assert Counter(row.response for row in chosen) == {"rare": 3, "common": 17}


def test_choice_depends_on_the_seed_not_on_the_order() -> None:
    new, earlier = rows(10, "new", "day-2"), rows(100, "common")
    config = TrainConfig()
    chosen = choose_replay(new, earlier, config)
    assert choose_replay(new, earlier[::-1], config) == chosen
    assert choose_replay(new, earlier, TrainConfig(seed=8)) != chosen


def test_new_and_repeated_rows_are_not_replayed() -> None:
    new = rows(10, "new", "day-2")
    earlier = [*rows(4, "old"), *rows(4, "old"), *new]
    chosen = choose_replay(new, earlier, TrainConfig(replay_share=0.9))
    assert sorted(row.record_id for row in chosen) == [f"day-1-old-{n}" for n in range(4)]

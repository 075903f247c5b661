"""A trace keeps its pattern when it is scaled, and prompts have the lengths asked for."""

from pathlib import Path

import pytest

from benchmarks.support.serving_clients import Answered, Outcome, figures, quantile
from benchmarks.support.serving_trace import (
    ANSWER_TOKENS_MAX,
    MEAN_ANSWER_TOKENS,
    PROMPT_TOKENS_MAX,
    Arrival,
    read_trace,
    scaled,
    synthetic_trace,
)

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.6805900,374,44
2023-11-16 18:15:46.1805900,879,55
2023-11-16 18:16:06.1805900,91,16
"""


def test_a_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(TRACE)
    found = read_trace(file)
    assert [item.at_seconds for item in found] == pytest.approx([0.0, 4.5, 20.0])
    assert [item.prompt_tokens for item in found] == [879, 374, 91]


def test_a_published_trace_can_be_read(shared_data: Path) -> None:
    found = read_trace(shared_data / "llm_trace" / "azure_2023_conv.csv")
    assert len(found) > 10_000
    assert scaled(found, 5.0, 10.0)[-1].at_seconds == pytest.approx(10.0)


def test_scaling_keeps_the_pattern_and_reaches_the_rate() -> None:
    trace = synthetic_trace(seed=3)
    assert trace == synthetic_trace(seed=3) != synthetic_trace(seed=4)
    made = scaled(trace, 20.0, 30.0)
    assert len(made) == 600
    assert made[-1].at_seconds == pytest.approx(30.0)
    stretch = 30.0 / (trace[599].at_seconds - trace[0].at_seconds)
    assert made[1].at_seconds == pytest.approx(
        (trace[1].at_seconds - trace[0].at_seconds) * stretch
    )
    answers = [item.answer_tokens for item in made]
    assert 0.8 * MEAN_ANSWER_TOKENS < sum(answers) / 600 <= 1.1 * MEAN_ANSWER_TOKENS
    assert max(answers) <= ANSWER_TOKENS_MAX
    assert max(item.prompt_tokens for item in made) <= PROMPT_TOKENS_MAX


def test_a_burst_alone_is_spread_over_the_time() -> None:
    made = scaled([Arrival(0.0, 10, 10), Arrival(0.0, 10, 10)], 1.0, 2.0)
    assert all(0 <= item.at_seconds <= 2.0 for item in made)


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 101)), 0.95) == 95
    assert quantile([7.0], 0.99) == 7.0


def test_figures_of_whole_answers_have_no_token_times() -> None:
    nan = float("nan")
    answers = [Answered(64, 1.0 + 0.1 * n, 0.2, nan, nan) for n in range(10)]
    found = figures(Outcome(answers, 2.0, []))
    assert found["tokens_per_second"] == 320.0
    assert found["latency_ms_p95"] == pytest.approx(200.0)
    assert not [name for name in found if name.startswith(("first", "inter"))]

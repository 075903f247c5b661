"""What the gateway counts for the health matrix, and the filter that it can switch on."""

import json

from serving.gateway.prompt_counts import PromptCounts
from serving.gateway.scores import VERSIONS_MAX, VersionScores
from serving.gateway.strikes import Strikes


def test_scores_are_counted_per_version_and_bounded() -> None:
    scores = VersionScores()
    for score in (0.5, 1.0):
        scores.add("assistant", "7", score)
    lines = list(scores.lines())
    named = '{service="assistant",model_version="7"}'
    assert f"serin_gateway_feedback_scores_total{named} 2" in lines
    assert f"serin_gateway_feedback_score_sum_total{named} 1.5" in lines
    for version in range(3 * VERSIONS_MAX):
        scores.add("assistant", str(version), 1.0)
    assert len(list(scores.lines())) == 2 * VERSIONS_MAX + 4


def test_prompts_are_counted_by_features_and_none_is_kept() -> None:
    counts = PromptCounts(share=1.0)
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "secretword"}]
    body = json.dumps({"model": "assistant", "messages": turns}).encode()
    counts.see("assistant", body)
    counts.see("assistant", b"{")
    text = "\n".join(counts.lines())
    assert 'serin_gateway_prompt_seen_total{service="assistant"} 1' in text
    assert 'feature="script",bucket="latin"} 1' in text
    assert "secretword" not in text


def test_a_share_of_zero_counts_nothing() -> None:
    counts = PromptCounts(share=0.0)
    turns = [{"role": "user", "content": "hello"}]
    counts.see("assistant", json.dumps({"messages": turns}).encode())
    assert "hello" not in "".join(counts.lines())
    assert not [line for line in counts.lines() if not line.startswith("#")]


def test_strikes_of_the_last_minute_are_told() -> None:
    strikes = Strikes(100, 10)
    for second in range(5):
        strikes.add("203.0.113.7", float(second))
    assert strikes.count("203.0.113.7", 5.0) == 5
    assert strikes.count("203.0.113.7", 62.0) == 2
    assert strikes.count("203.0.113.8", 5.0) == 0

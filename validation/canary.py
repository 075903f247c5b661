"""The canary judge: samples of both arms in, one decision out. No clock, socket or file.

The anytime-valid judge decides; the classic rule stands beside it as an independent guard. Either
takes a canary back, only both together promote it.
"""

from collections.abc import Iterable

from pydantic import Field

from core.contracts import CanaryDecision, CounterSample
from validation.bake import BakeConfig
from validation.classic import ClassicConfig, ClassicRule
from validation.counts import CountsJudge
from validation.judge import BettingConfig, MetricName, SequentialConfig


class CanaryConfig(ClassicConfig):
    """When a canary is taken back, promoted or given up."""

    betting: BettingConfig | None = Field(
        default=BettingConfig(),
        description="the anytime-valid judge; without it the classic rule decides alone",
    )
    judge_quality: bool = Field(
        default=False,
        description="scored answers and shadow pairs must show the canary's quality before it is "
        "promoted",
    )
    bake: BakeConfig = Field(
        default=BakeConfig(), description="absolute limits for a while after the promotion"
    )

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """What the anytime-valid judge bets on."""
        always: tuple[MetricName, ...] = ("errors", "latency", "blocks_up", "blocks_down")
        return (*always, "quality") if self.judge_quality else always


class CanaryJudge:
    """Both judges over a growing series of samples; asking does not change what follows."""

    def __init__(self, config: CanaryConfig) -> None:
        self.config = config
        self._classic = ClassicRule(config, alone=config.betting is None)
        self._betting: CountsJudge | None = None
        if config.betting is not None:
            limits = {
                "p95_ratio": config.p95_ratio_max,
                "seconds_min": config.seconds_min,
                "seconds_max": config.seconds_max,
            }
            values = config.betting.model_dump() | limits
            self._betting = CountsJudge(SequentialConfig(**values), config.metrics)

    def add(self, sample: CounterSample) -> None:
        """Take one scrape, oldest first."""
        self._classic.add(sample)
        if self._betting is not None:
            self._betting.add(sample)

    def decide(self) -> CanaryDecision:
        """Say what the evidence allows now. Only agreement of both promotes."""
        guard = self._classic.decide()
        if self._betting is None:
            return guard
        made = self._betting.decide()
        figures = {**guard.figures, **made.figures}
        requests = max(made.canary_requests, guard.canary_requests)
        decision, reason = made.decision, made.reason
        if guard.decision == "rollback":
            decision, reason = "rollback", f"classic rule: {guard.reason}"
        elif decision == "promote" and guard.decision != "promote":
            decision, reason = guard.decision, f"classic rule: {guard.reason}"
        elif decision == "continue" and guard.decision == "inconclusive":
            decision, reason = "inconclusive", f"{guard.reason}; {reason}"
        return CanaryDecision(decision, reason, requests, figures)


def judge(config: CanaryConfig, samples: Iterable[CounterSample]) -> CanaryDecision:
    """Decide about a canary from all scrapes since it began, oldest first. Never raises."""
    judging = CanaryJudge(config)
    for sample in samples:
        judging.add(sample)
    return judging.decide()

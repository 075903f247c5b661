"""What evaluators thought of each version's answers, inside and outside comparisons."""

from collections.abc import Iterator

from serving.gateway.exposition import family, labels

VERSIONS_MAX = 64


class VersionScores:
    """Number and sum of scores per service and version; beyond VERSIONS_MAX the oldest go."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, float]] = {}

    def add(self, service: str, version: str, score: float) -> None:
        """Count one score from 0 to 1."""
        key = service, version
        if key not in self._found and len(self._found) >= VERSIONS_MAX:
            del self._found[next(iter(self._found))]
        count, total = self._found.get(key, (0, 0.0))
        self._found[key] = count + 1, total + score

    def lines(self) -> Iterator[str]:
        """Yield both counters in Prometheus' text format."""
        named = {
            labels(service=service, model_version=version): found
            for (service, version), found in self._found.items()
        }
        prefix = "serin_gateway_feedback_"
        text = "Scores that evaluators gave to answers."
        counts = ((name, count) for name, (count, _) in named.items())
        yield from family(prefix + "scores_total", "counter", text, counts)
        text = "Sum of those scores, each from 0 (bad) to 1 (good)."
        totals = ((name, total) for name, (_, total) in named.items())
        yield from family(prefix + "score_sum_total", "counter", text, totals)

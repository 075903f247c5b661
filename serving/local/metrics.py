"""What the control plane counts, in Prometheus' text format: predictors that ended unasked."""

from collections import Counter

from serving.gateway.exposition import family, labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REVISIONS_MAX = 200


class Exits:
    """Ends of predictors that nobody asked for, by revision; beyond REVISIONS_MAX the oldest go."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, service: str, revision: str) -> None:
        """Count one."""
        key = service, revision
        if key not in self._counts and len(self._counts) >= REVISIONS_MAX:
            del self._counts[next(iter(self._counts))]
        self._counts[key] += 1

    def exposition(self) -> str:
        """Return all counts."""
        counted = (
            (labels(service=service, revision=revision), count)
            for (service, revision), count in self._counts.items()
        )
        text = "Predictors that ended by themselves, were killed, or could not be started."
        lines = family("serin_control_predictor_exits_total", "counter", text, counted)
        return "\n".join(lines) + "\n"

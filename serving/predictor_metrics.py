"""The predictor's Prometheus metrics: one registry, the model version on every series."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from core.contracts import LATENCY_BUCKETS_SECONDS
from serving.engines.engine import EngineLoad
from serving.gpus import Gpus
from serving.resource_metrics import ResourceCollector

LABELS = ("model_version", "revision")
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = ("ok", "client_error", "blocked", "refused", "expired", "cancelled", "error")
DIRECTIONS = ("input", "output")
ACTIONS = ("allow", "redact", "block")


class PredictorMetrics:
    """Counters of one predictor. Durations in seconds, from a request's arrival."""

    def __init__(self, model_version: str, revision: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per series that nobody reads
        self._registry = CollectorRegistry()
        self._names = (model_version, revision)
        self._tokens = {"input": 0, "output": 0}
        ProcessCollector(registry=self._registry)
        requests = self._counter("requests", "Requests by how they ended", "outcome")
        self._requests = {outcome: requests.labels(*self._names, outcome) for outcome in OUTCOMES}
        self._latency = self._histogram("request_seconds", "Time to the whole answer, if any")
        self._first_token = self._histogram("first_token_seconds", "Time to the first token")
        self._between_tokens = self._histogram(
            "inter_token_seconds", "Time between two tokens of an answer, its mean"
        )
        self._queue = self._histogram("queue_seconds", "Wait for a slot")
        self._batch = self._histogram(
            "batch_answers", "Answers inside the engine when one joins them", BATCH_BUCKETS
        )
        tokens = "Tokens of prompts answered", "Tokens generated"
        self._prompt_tokens = self._counter("prompt_tokens", tokens[0]).labels(*self._names)
        self._completion_tokens = self._counter("generated_tokens", tokens[1]).labels(*self._names)
        checked = self._counter("checked_texts", "Texts by safety decision", "direction", "action")
        self._checked = {
            (direction, action): checked.labels(*self._names, direction, action)
            for direction in DIRECTIONS
            for action in ACTIONS
        }
        texts = {
            "output": "Bytes of text that left in answers, counted on what was sent",
            "scanned": "Bytes of text that the safety chain let pass",
            "unscanned": "Bytes of text that came to the edge unscanned; they were stopped",
            "failed_open": "Bytes of text that left although a filter had failed on it",
        }
        self._bytes = {
            name: self._counter(f"{name}_bytes", text).labels(*self._names)
            for name, text in texts.items()
        }
        rows = "Rows of the audit; missed: those that could not be written"
        self._audited = self._counter("audit_rows", rows).labels(*self._names)
        self._missed = self._counter("audit_missed", rows).labels(*self._names)
        self._filter_failures = self._counter(
            "filter_failures", "Safety filters that failed or were late", "filter"
        )

    def watch(
        self,
        waiting: Callable[[], int],
        running: Callable[[], int],
        load: Callable[[], EngineLoad],
    ) -> None:
        """Read the gauges from these when somebody scrapes."""
        self._gauge("queue_requests", "Requests waiting for a slot", waiting)
        self._gauge("running_answers", "Slots taken by answers in work", running)
        self._gauge("engine_answers", "Answers inside the engine", lambda: load().answers)
        usage = "Share of the KV cache in use"
        self._gauge("cache_usage_ratio", usage, lambda: load().cache_usage)

    def watch_resources(
        self,
        gpus: Gpus,
        prices: Mapping[str, float],
        spans: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        """Read what the process uses, what its tokens cost and what became of its traces' spans."""
        labels = dict(zip(LABELS, self._names, strict=True))
        collector = ResourceCollector(labels, gpus, prices, lambda: self._tokens, spans)
        self._registry.register(collector)

    def watch_policy(self, refused: Callable[[], bool]) -> None:
        """Read when somebody scrapes whether the last change of the policy was refused."""
        text = "1 while the policy's last change is refused and the one before stays in force"
        self._gauge("policy_refused", text, lambda: float(refused()))

    def checked(self, direction: str, action: str, failed: Iterable[str]) -> None:
        """Count a text that the safety chain judged, and the filters that failed on it."""
        self._checked[direction, action].inc()
        for name in failed:
            self._filter_failures.labels(*self._names, name).inc()

    def scanned(self, size: int, failed_open: bool) -> None:
        """Count bytes that the chain let pass; failed open: a filter had failed on them."""
        self._bytes["scanned"].inc(size)
        if failed_open:
            self._bytes["failed_open"].inc(size)

    def sent(self, size: int) -> None:
        """Count bytes of text that leave."""
        self._bytes["output"].inc(size)

    def unscanned(self, size: int) -> None:
        """Count bytes of text that no filter had seen."""
        self._bytes["unscanned"].inc(size)

    def audited(self, rows: int, kept: bool) -> None:
        """Count requests with or without their row."""
        (self._audited if kept else self._missed).inc(rows)

    def finished(self, outcome: str, seconds: float) -> None:
        """Count a request. Only answers and our own failures enter the latency histogram."""
        self._requests[outcome].inc()
        if outcome in ("ok", "expired", "error"):
            self._latency.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Note a request's time to its first token."""
        self._first_token.observe(seconds)

    def began(self, queue_seconds: float, answers: int) -> None:
        """Note that a request left the queue and joined so many answers, its own included."""
        self._queue.observe(queue_seconds)
        self._batch.observe(answers)

    def between_tokens(self, seconds: float) -> None:
        """Note an answer's mean time between tokens."""
        self._between_tokens.observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """Count the tokens of an answered request."""
        self._prompt_tokens.inc(prompt)
        self._completion_tokens.inc(completion)
        self._tokens["input"] += prompt
        self._tokens["output"] += completion

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """Return the metrics' text and its content type."""
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"serin_predictor_{name}", text, (*LABELS, *labels), registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float] = LATENCY_BUCKETS_SECONDS
    ) -> Histogram:
        made = Histogram(
            f"serin_predictor_{name}", text, LABELS, registry=self._registry, buckets=buckets
        )
        return made.labels(*self._names)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"serin_predictor_{name}", text, LABELS, registry=self._registry)
        gauge.labels(*self._names).set_function(value)

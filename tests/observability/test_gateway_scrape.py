"""Scraping a gateway: counters per arm, sums over a span, and doubt where a page is no good."""

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from core.contracts import (
    LATENCY_BUCKETS_SECONDS,
    ArmCounters,
    ArmOutcomes,
    CounterSample,
    ScoredPairs,
    Stratum,
)
from core.errors import UnavailableError
from observability.metrics import parse_sample, quantile, scrape, summary

ROOT = Path(__file__).resolve().parents[2]
LABELS = 'service="assistant",arm="stable",revision="r1",model_version="1"'


def page(requests: int = 3, buckets: int = len(LATENCY_BUCKETS_SECONDS)) -> str:
    edges = LATENCY_BUCKETS_SECONDS[:buckets]
    return "\n".join(
        [
            "# HELP python_info Something else.",
            'python_info{version="3"} 1.0',
            'serin_gateway_declared_share{service="assistant"} 0.05',
            f"serin_gateway_arm{{{LABELS}}} 1",
            f"serin_gateway_draws_total{{{LABELS}}} {requests + 1}",
            f'serin_gateway_requests_total{{{LABELS},outcome="error"}} 1',
            *(
                f'serin_gateway_request_seconds_bucket{{{LABELS},le="{edge}"}} {requests}'
                for edge in edges
            ),
            f'serin_gateway_request_seconds_bucket{{{LABELS},le="+Inf"}} {requests}',
            f"serin_gateway_request_seconds_count{{{LABELS}}} {requests}",
            "",
        ]
    )


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A server whose `answer` is (status, text)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            return

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_scrape_gives_the_arms_in_force(server: ThreadingHTTPServer) -> None:
    server.answer = (200, page())  # type: ignore[attr-defined]
    sample = scrape(address(server), "assistant")
    assert sample.share == 0.05
    assert sample.stable is not None
    assert (sample.stable.draws, sample.stable.requests, sample.stable.errors) == (4, 3, 1)
    assert sample.canary is None


@pytest.mark.parametrize(
    "answer",
    [(500, "broken"), (200, ""), (200, "<html></html>\n"), (200, page()[:-50])],
    ids=["error", "empty", "another-page", "cut-off"],
)
def test_a_page_that_is_not_whole_is_no_sample(
    server: ThreadingHTTPServer, answer: tuple[int, str]
) -> None:
    server.answer = answer  # type: ignore[attr-defined]
    with pytest.raises(UnavailableError):
        scrape(address(server), "assistant")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://x", "", "http://"])
def test_no_gateway_is_said_in_one_sentence(url: str) -> None:
    with pytest.raises(UnavailableError):
        scrape(url, "assistant", timeout_seconds=1)


def test_other_buckets_are_refused_instead_of_misread() -> None:
    with pytest.raises(UnavailableError, match="buckets"):
        parse_sample(page(buckets=100), "assistant", 0)


@pytest.mark.parametrize("line", ["serin_gateway_x", 'serin_gateway_x{a="b} 1', "serin_gateway_x{"])
def test_an_unreadable_line_spoils_the_page(line: str) -> None:
    with pytest.raises(UnavailableError):
        parse_sample(f"{page()}{line}\n", "assistant", 0)


PAIR = 'service="assistant",canary="r2",stable="r1"'
CANARY_LOW = PAIR + ',share="0.05",arm="canary"'


def settled_page() -> str:
    """A canary in force, with two shares of its comparison and one of an earlier comparison."""
    canary = LABELS.replace("stable", "canary").replace('"r1"', '"r2"')
    earlier = PAIR.replace('"r2"', '"r0"')
    return "\n".join(
        [
            f'serin_gateway_settled_requests_total{{{earlier},share="0.3",arm="canary"}} 99',
            f'serin_gateway_settled_requests_total{{{PAIR},share="0.15",arm="stable"}} 7',
            f'serin_gateway_settled_requests_total{{{PAIR},share="0.05",arm="stable"}} 3',
            f'serin_gateway_settled_requests_total{{{PAIR},share="0.05",arm="canary"}} 2',
            f'serin_gateway_settled_errors_total{{{PAIR},share="0.05",arm="canary"}} 1',
            f'serin_gateway_settled_blocks_total{{{PAIR},share="0.05",arm="stable"}} 1',
            f'serin_gateway_settled_latency_total{{{CANARY_LOW},bucket="126"}} 1',
            f'serin_gateway_settled_latency_total{{{CANARY_LOW},bucket="0"}} 1',
            f'serin_gateway_settled_scores_total{{{PAIR},share="0.05",arm="stable",score="100"}} 4',
            'serin_gateway_process{process="0123abcd"} 1',
            f"serin_gateway_arm{{{canary}}} 1",
            page(),
        ]
    )


def test_a_scrape_gives_the_strata_of_the_comparison_in_force() -> None:
    sample = parse_sample(settled_page(), "assistant", 0)
    assert sample.process == "0123abcd"
    assert sample.strata == (
        Stratum(0.15, ArmOutcomes(7)),
        Stratum(
            0.05, ArmOutcomes(3, blocks=1, scores={100: 4}), ArmOutcomes(2, 1, 0, {126: 1, 0: 1})
        ),
    )
    assert sample.stable is not None
    assert (sample.stable.requests, sample.stable.errors) == (3, 1)


def test_there_are_no_strata_without_a_canary_in_force_or_for_another_service() -> None:
    text = settled_page()
    alone = "\n".join(line for line in text.splitlines() if "gateway_arm{" not in line) + "\n"
    assert parse_sample(alone, "assistant", 0).strata == ()
    assert parse_sample(text, "other", 0) == CounterSample(0, 0, None, None, "0123abcd")


@pytest.mark.parametrize(
    "more",
    ['share="0.05",arm="canary",bucket="127"', 'share="0.05",arm="canary",bucket="-1"',
     'share="0.05",arm="canary"', 'share="x",arm="canary",bucket="1"',
     'arm="canary",bucket="1"', 'share="1.5",arm="canary",bucket="1"',
     'share="0.05",arm="other",bucket="1"'],
)  # fmt: skip
def test_settled_counts_that_cannot_be_placed_are_refused(more: str) -> None:
    line = f"serin_gateway_settled_latency_total{{{PAIR},{more}}} 1\n"
    with pytest.raises(UnavailableError, match="settled"):
        parse_sample(settled_page() + line, "assistant", 0)


def test_a_scrape_gives_the_scored_pairs_of_the_comparison_in_force() -> None:
    name, earlier = "serin_gateway_shadow_pairs_total", PAIR.replace('"r2"', '"r0"')
    lines = [
        f'{name}{{{PAIR},canary_score="100",stable_score="0"}} 2',
        f'{name}{{{PAIR},canary_score="25",stable_score="91"}} 3',
        f'{name}{{{earlier},canary_score="0",stable_score="0"}} 9',
        f"serin_gateway_shadow_agreements_total{{{PAIR}}} 5",
    ]
    text = "\n".join(lines) + "\n" + settled_page()
    sample = parse_sample(text, "assistant", 0)
    assert sample.pairs == (ScoredPairs(25, 91, 3), ScoredPairs(100, 0, 2))
    assert parse_sample(text, "other", 0).pairs == ()


def test_a_kept_sample_from_before_there_were_pairs_is_read() -> None:
    text = b'{"time_seconds":1.0,"share":0.5,"stable":null,"canary":null,"process":"p","strata":[]}'
    assert msgspec.json.decode(text, type=CounterSample).pairs == ()


@pytest.mark.parametrize("more", ['canary_score="101",stable_score="0"', 'canary_score="1"'])
def test_pairs_that_cannot_be_are_refused(more: str) -> None:
    line = f"serin_gateway_shadow_pairs_total{{{PAIR},{more}}} 1\n"
    with pytest.raises(UnavailableError, match="shadow_pairs"):
        parse_sample(line + settled_page(), "assistant", 0)


def counters(requests: int, revision: str = "r1", errors: int = 0, fast: int = 0) -> ArmCounters:
    """`fast` of the requests took at most the first edge, the others at most the last."""
    last = len(LATENCY_BUCKETS_SECONDS) - 1
    buckets = tuple(requests if index == last else fast for index in range(last + 1))
    return ArmCounters(revision, requests, requests, errors, buckets)


def test_a_summary_counts_what_happened_between_two_scrapes() -> None:
    then = CounterSample(100, 0.05, counters(1000, fast=1000), None)
    now = CounterSample(160, 0.15, counters(1100, fast=1090, errors=5), counters(20, "r2"))
    found = summary(then, now)
    assert (found.seconds, found.share) == (60, 0.15)
    assert found.stable is not None
    assert found.canary is not None
    assert (found.stable.requests, found.stable.error_share) == (100, 0.05)
    assert found.stable.p50_seconds == pytest.approx(0.002 * 50 / 90)
    assert found.stable.p95_seconds > 100
    assert found.canary.requests == 20


def test_a_restarted_gateway_is_counted_from_zero() -> None:
    then = CounterSample(0, 0, counters(1000), None)
    now = CounterSample(1, 0, counters(7), None)
    found = summary(then, now).stable
    assert found is not None
    assert found.requests == 7


def test_nothing_happened_is_not_a_number() -> None:
    sample = CounterSample(0, 0, counters(5), None)
    found = summary(sample, sample)
    assert found.stable is not None
    assert found.stable.requests == 0
    assert math.isnan(found.stable.p95_seconds)
    assert math.isnan(found.stable.error_share)
    assert found.canary is None


def test_a_quantile_takes_the_whole_count_last() -> None:
    buckets = [*counters(10, fast=5).latency_buckets, 10]
    assert quantile(buckets, 0.25) == pytest.approx(0.001)


def test_reading_metrics_loads_no_http_library() -> None:
    heavy = {"httpx", "aiohttp", "requests", "pydantic", "torch"}
    code = f"import sys, observability.metrics; print(*({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""

"""Any process's Prometheus page, fetched and read; knows no metric."""

import http.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.errors import UnavailableError
from core.keys import bearer

PAGE_BYTES_MAX = 16 << 20
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Samples by name."""

    samples: Mapping[str, tuple[tuple[Labels, float], ...]]

    def series(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        """Every sample of a name that has these labels."""
        for found, value in self.samples.get(name, ()):
            if all(found.get(key) == wanted for key, wanted in labels.items()):
                yield found, value

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None without any."""
        values = [value for _, value in self.series(name, **labels)]
        return sum(values) if values else None


def fetch_page(url: str, token: str = "", timeout_seconds: float = 3.0) -> Page:
    """GET <url>/metrics, without redirects, proxies or retries.

    Raises UnavailableError when nobody answers in time, or not with such a page.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UnavailableError(f"{url!r} is not an http:// address")
    connection = http.client.HTTPConnection(
        parts.hostname, parts.port or 80, timeout=timeout_seconds
    )
    headers = {"Authorization": bearer(token)} if token else {}
    try:
        connection.request("GET", parts.path.rstrip("/") + "/metrics", headers=headers)
        answer = connection.getresponse()
        content = answer.read(PAGE_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"no metrics from {url}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise UnavailableError(f"{url}/metrics answered {answer.status}")
    return read_page(content.decode("utf-8", "replace"))


def read_page(text: str) -> Page:
    """Read Prometheus' text format. Raises UnavailableError for anything else."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, float(sample.value)))
    except ValueError as error:
        raise UnavailableError(f"unreadable metrics: {error}") from error
    return Page({name: tuple(found) for name, found in samples.items()})

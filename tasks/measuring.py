"""Looks once at everything that the health matrix judges; who does not answer is unknown.

Reads pages, files and the ledger; changes nothing. What is dear is asked rarely (rare_readings.py).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import SerinError
from core.keys import predictor_token
from core.settings import Settings
from observability.offenders import strikes
from observability.pages import Page, fetch_page
from rollout.inference_service import Body
from rollout.kubernetes_client import KubernetesClient
from rollout.scaling import read_replicas
from tasks.gateway_files import is_exempt
from validation.health import Reading
from validation.health_config import HealthConfig
from validation.health_figures import MALFORMED, Look

GATEWAY = "serin_gateway_"
PREDICTORS_MAX = 64
PREDICTOR = "serin_predictor_"
UNCHECKED = (PREDICTOR + "unscanned_bytes_total", PREDICTOR + "failed_open_bytes_total")
"""Text that came to the edge unscanned and was stopped there, or left although a filter failed."""
RESIDENT = (PREDICTOR + "memory_bytes", "process_resident_memory_bytes")
SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9}
STRIKES_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Pages:
    """What everybody tells; None, or missing in `predictors` (by address), for who is silent."""

    gateway: Page | None
    control: Page | None
    predictors: Mapping[str, Page]
    predictors_asked: int
    service: Body | None


def read_pages(settings: Settings) -> Pages:
    """Ask gateway, control plane and predictors at the same time."""
    urls = predictor_urls(settings.home / "control" / "routes.json", settings.service)
    client = KubernetesClient(settings.kube_url)
    with ThreadPoolExecutor(8, thread_name_prefix="health") as pool:
        gateway = pool.submit(_asked, lambda: fetch_page(settings.gateway_url))
        control = pool.submit(_asked, lambda: fetch_page(settings.kube_url))
        service = pool.submit(_asked, lambda: client.get(settings.namespace, settings.service))
        token = predictor_token(settings.home, settings.predictor_token.get_secret_value())
        found = list(pool.map(lambda url: _asked(lambda: fetch_page(url, token)), urls))
        return Pages(
            gateway=gateway.result(),
            control=control.result(),
            predictors={
                url: page for url, page in zip(urls, found, strict=True) if page is not None
            },
            predictors_asked=len(urls),
            service=service.result(),
        )


def take_look(pages: Pages, service: str, now: float) -> Look:
    """Return the counters that are compared over a window."""
    counts: dict[str, float] = {}
    if (gateway := pages.gateway) is not None:
        counts |= _gateway_counts(gateway, service)
    if pages.control is not None:
        exits = pages.control.total("serin_control_predictor_exits_total", service=service)
        counts["exits"] = exits or 0.0
    for url, page in pages.predictors.items():
        unscanned = [page.total(name) for name in UNCHECKED]
        if known := [value for value in unscanned if value is not None]:
            counts[f"unscanned_bytes:{url}"] = sum(known)
    declared = gateway.total(GATEWAY + "declared_share", service=service) if gateway else None
    return Look(now, counts, declared, _wanted_share(pages.service))


def live_readings(
    settings: Settings, config: HealthConfig, pages: Pages, now: float
) -> dict[str, Reading]:
    """Return the readings that are values of this moment."""
    return {
        "memory_share": _memory(config, pages),
        "long_input_share": _long_inputs(pages.gateway),
        "client_strikes_per_minute": _strikes(settings, config, now),
        "disk_used_share": _disk(settings.home),
    }


def predictor_urls(routes: Path, service: str) -> list[str]:
    """Return where the service's predictors answer, by the one-machine control plane's file."""
    try:
        arms = json.loads(routes.read_text())["services"][service]["arms"]
        found = [str(endpoint["url"]) for arm in arms for endpoint in arm["endpoints"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found[:PREDICTORS_MAX]


def memory_bytes(quantity: str) -> float | None:
    """Return a Kubernetes quantity (`2Gi`, `500M`) in bytes; None if it is none."""
    suffix = next((one for one in SUFFIXES if quantity.endswith(one)), "")
    try:
        return float(quantity.removesuffix(suffix)) * SUFFIXES.get(suffix, 1)
    except ValueError:
        return None


def _gateway_counts(page: Page, service: str) -> dict[str, float]:
    counts = {
        "requests": page.total(GATEWAY + "requests_total", service=service) or 0.0,
        "blocked": page.total(GATEWAY + "strikes_total", kind="blocked") or 0.0,
        "failed_authentication": page.total(GATEWAY + "strikes_total", kind="failed_authentication")
        or 0.0,
        "malformed": sum(
            page.total(GATEWAY + "refused_total", reason=reason) or 0.0 for reason in MALFORMED
        ),
        "filtered": page.total(GATEWAY + "refused_total", reason="filtered") or 0.0,
    }
    for labels, value in page.series(GATEWAY + "draws_total", service=service):
        counts[f"draws:{labels['arm']}:{labels['revision']}"] = value
    edges: dict[float, float] = {}
    for labels, value in page.series(GATEWAY + "request_seconds_bucket", service=service):
        edge = float(labels["le"])
        edges[edge] = edges.get(edge, 0.0) + value
    before = 0.0
    for at, edge in enumerate(sorted(edges)):
        if edges[edge] > before:
            counts[f"bucket:{at}"] = edges[edge] - before
        before = edges[edge]
    return counts


def _wanted_share(service: Body | None) -> float | None:
    """The canary's share by the service's status, 0 without a canary."""
    if service is None:
        return None
    component = ((service.get("status") or {}).get("components") or {}).get("predictor") or {}
    traffic = component.get("traffic") or ()
    if len({entry.get("revisionName") for entry in traffic}) < 2:
        return 0.0
    return sum(entry.get("percent") or 0 for entry in traffic if entry.get("latestRevision")) / 100


def _memory(config: HealthConfig, pages: Pages) -> Reading:
    """A GPU's memory where a predictor tells of one; else resident memory against its limit."""
    if not pages.predictors_asked:
        return Reading(absent=True, why="no predictor serves here")
    gpu = [
        used / limit
        for page in pages.predictors.values()
        for labels, used in page.series(PREDICTOR + "gpu_memory_bytes")
        if (limit := page.total(PREDICTOR + "gpu_memory_limit_bytes", gpu=labels["gpu"]))
    ]
    if gpu:
        return Reading(max(gpu), detail={"of": "GPU memory"})
    found = [[page.total(name) for name in RESIDENT] for page in pages.predictors.values()]
    known = [next(filter(None, values)) for values in found if any(values)]
    if not known:
        return Reading(why=f"none of {pages.predictors_asked} predictors tells")
    limit = config.memory_limit_bytes or _service_limit(pages.service)
    used, most = (max(known), limit) if limit else (sum(known), float(_machine_bytes()))
    detail = {"bytes": used, "limit_bytes": most, "predictors": len(known)}
    return Reading(used / most, detail=detail)


def _service_limit(service: Body | None) -> float | None:
    limit = read_replicas(service).memory_limit if service else None
    return memory_bytes(limit) if limit else None


def _machine_bytes() -> int:
    import psutil

    total: int = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _long_inputs(page: Page | None) -> Reading:
    if page is None:
        return Reading(why="the gateway does not answer")
    share = page.total(GATEWAY + "input_long_share")
    return Reading(share) if share is not None else Reading(0.0, why="too few inputs to tell")


def _strikes(settings: Settings, config: HealthConfig, now: float) -> Reading:
    try:
        found = strikes(settings.home / "audit", STRIKES_SECONDS, now)
    except OSError as error:
        return Reading(why=f"the audit cannot be read: {error}")
    for client, count in found.most_common():
        if not is_exempt(client, config.ban_exempt):
            return Reading(float(count), detail={"client": client})
    return Reading(0.0)


def _disk(home: Path) -> Reading:
    try:
        usage = shutil.disk_usage(home)
    except OSError as error:
        return Reading(why=str(error))
    return Reading(1 - usage.free / usage.total, detail={"free_bytes": usage.free})


def _asked(ask: Callable[[], Any]) -> Any:
    """What it returns; None where it cannot be told now."""
    try:
        return ask()
    except SerinError:
        return None


def feature_counts(page: Page, service: str) -> Mapping[str, dict[str, float]]:
    """Return the features of the prompts that the gateway has counted: {feature: {bucket: n}}."""
    found: dict[str, dict[str, float]] = {}
    for labels, value in page.series(GATEWAY + "prompt_features_total", service=service):
        found.setdefault(labels["feature"], {})[labels["bucket"]] = value
    return found

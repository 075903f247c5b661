"""Readings that cost too much for every look: probes, drift, the whole ledger, the daily run.

Each is taken when its time has come, and kept until then.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import SerinError, UnavailableError
from core.settings import Settings
from core.words import features
from rollout.ledger import Ledger
from rollout.times import to_seconds
from tasks.measuring import GATEWAY, Pages, feature_counts
from tasks.remembering import Drift, Remembered
from validation.health import Reading
from validation.health_config import HealthConfig
from validation.health_figures import Score, bucket_of, quality_drop, with_score

if TYPE_CHECKING:
    from core.contracts import Record

CHAT_PATH = "/openai/v1/chat/completions"
PROBE_SECONDS_MAX = 20.0
PROBE_TOKENS_MAX = 64
PROBES_BYTES_MAX = 4 << 20
SNAPSHOTS_MAX = 10
DAILY = "retrain/daily"
FEEDBACK, PROBES = "feedback", "probes"


def rare_readings(
    settings: Settings,
    config: HealthConfig,
    ledger: Ledger,
    pages: Pages,
    remembered: Remembered,
    now: float,
) -> Remembered:
    """Return what is remembered, with those readings anew whose time has come."""
    remembered = _with_feedback(config, pages, remembered, now, settings.service)
    if config.probes_asked and _due(remembered, PROBES, config.probe_seconds, now):
        remembered = _with_probes(settings, config, remembered, now)
    taken: dict[str, Reading] = {
        "quality_drop_share": _quality(settings, config, ledger, remembered, now)
    }
    times = dict(remembered.asked_at)
    if _due(remembered, "ledger_problems", config.ledger_seconds, now):
        taken["ledger_problems"] = _ledger(ledger)
        times["ledger_problems"] = now
    taken["daily_run_age_seconds"] = _daily_run(settings, now)
    remembered = replace(remembered, rare={**remembered.rare, **taken}, asked_at=times)
    if _due(remembered, "prompt_drift", config.drift_seconds, now):
        remembered = _with_drift(settings, config, ledger, pages, remembered, now)
    return remembered


def _due(remembered: Remembered, name: str, seconds: float, now: float) -> bool:
    return now - remembered.asked_at.get(name, float("-inf")) >= seconds


def _week(config: HealthConfig) -> float:
    rows = config.rows.values()
    spans = [
        r.window_seconds for r in rows for c in r.conditions if c.metric == "quality_drop_share"
    ]
    return max(spans, default=7 * 86400.0)


def _with_feedback(
    config: HealthConfig, pages: Pages, remembered: Remembered, now: float, service: str
) -> Remembered:
    """Add the scores that came since the last look to this part of the week."""
    page = pages.gateway
    if page is None:
        return remembered
    process = next((labels["process"] for labels, _ in page.series(GATEWAY + "process")), "")
    scores, seen = remembered.scores, dict(remembered.feedback)
    for labels, count in page.series(GATEWAY + "feedback_scores_total", service=service):
        version = labels["model_version"]
        total = page.total(
            GATEWAY + "feedback_score_sum_total", service=service, model_version=version
        )
        old = seen.get(version, ("", 0.0, 0.0))
        base = old if old[0] == process else (process, 0.0, 0.0)
        seen[version] = (process, count, total or 0.0)
        grown = count - base[1]
        if grown > 0:
            bucket = bucket_of(now, _week(config))
            new = Score(version, FEEDBACK, bucket, grown, (total or 0.0) - base[2])
            scores = with_score(scores, new)
    return replace(remembered, scores=scores, feedback=seen)


def _with_probes(
    settings: Settings, config: HealthConfig, remembered: Remembered, now: float
) -> Remembered:
    """Ask the next labelled probes through the gateway, and score the version that answered."""
    asked = {**remembered.asked_at, PROBES: now}
    probes = _read_probes(settings.home / "probes.jsonl")
    scores, at = remembered.scores, remembered.probes_at
    for _ in range(min(config.probes_asked, len(probes))):
        probe = probes[at % len(probes)]
        at += 1
        try:
            answer, version = _ask(settings, probe["messages"])
        except UnavailableError:
            break  # what is not answered says nothing about quality; other rows see it
        right = float(answer.strip() == str(probe["response"]).strip())
        bucket = bucket_of(now, _week(config))
        scores = with_score(scores, Score(version, PROBES, bucket, 1.0, right))
    return replace(remembered, scores=scores, probes_at=at, asked_at=asked)


def _read_probes(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > PROBES_BYTES_MAX:
            return []
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [row for row in rows if row["messages"] and "response" in row]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # the gateway, which reads the same file, says what is wrong with it


def _ask(settings: Settings, messages: Any) -> tuple[str, str]:
    """Ask once, for an answer that is made anew: (answer, version). Raises UnavailableError."""
    import urllib.error
    import urllib.request

    body = {
        "model": settings.service,
        "messages": messages,
        "temperature": 0,
        "max_tokens": PROBE_TOKENS_MAX,
    }
    headers = {"Content-Type": "application/json", "X-Serin-Cache": "bypass"}
    if key := settings.probe_key.get_secret_value():
        headers["Authorization"] = f"Bearer {key}"
    url = settings.gateway_url + CHAT_PATH
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PROBE_SECONDS_MAX) as reply:
            content = json.load(reply)
            version = reply.headers.get("x-serin-model-version", "")
        return str(content["choices"][0]["message"]["content"]), version
    except (urllib.error.URLError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UnavailableError(f"the gateway did not answer a probe: {error}") from error


def _quality(
    settings: Settings, config: HealthConfig, ledger: Ledger, remembered: Remembered, now: float
) -> Reading:
    stable = ledger.stable(settings.service, settings.namespace)
    if stable is None or stable.finished_at is None:
        return Reading(absent=True, why="nothing was released yet")
    return quality_drop(
        remembered.scores,
        stable.candidate.model_version,
        to_seconds(stable.finished_at),
        now,
        _week(config),
        config.scores_min,
    )


def _ledger(ledger: Ledger) -> Reading:
    try:
        problems = ledger.verify()
    except SerinError as error:
        return Reading(why=str(error))
    return Reading(float(len(problems)), detail={"first": problems[0] if problems else None})


def _daily_run(settings: Settings, now: float) -> Reading:
    """The age of the last daily result, where a schedule of daily runs is on."""
    active = schedule_active()
    if active is None:
        return Reading(why="Prefect does not answer")
    if not active:
        return Reading(absent=True, why="the daily schedule is off")
    results = (settings.home / "reports").glob("*/result.json")
    last = max((path.stat().st_mtime for path in results), default=None)
    if last is None:
        return Reading(why="no daily run has ended yet")
    return Reading(max(0.0, now - last))


def schedule_active() -> bool | None:
    """Whether Prefect starts the daily run by itself; None where Prefect does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(DAILY)
    except ObjectNotFound:
        return False
    except (httpx.HTTPError, OSError, RuntimeError, ValueError):
        return None
    return not found.paused and any(schedule.active for schedule in found.schedules)


def _with_drift(
    settings: Settings,
    config: HealthConfig,
    ledger: Ledger,
    pages: Pages,
    remembered: Remembered,
    now: float,
) -> Remembered:
    """Compare the prompts of the present window with those that stable was trained on."""
    page = pages.gateway
    if page is None:
        return remembered
    process = next((labels["process"] for labels, _ in page.series(GATEWAY + "process")), "")
    counted = {name: dict(found) for name, found in feature_counts(page, settings.service).items()}
    prompts = page.total(GATEWAY + "prompt_seen_total", service=settings.service) or 0.0
    base = remembered.drift
    if base is None or base.process != process:
        base = Drift(now, process, 0.0, {})
    live = {
        feature: {b: n - base.features.get(feature, {}).get(b, 0.0) for b, n in found.items()}
        for feature, found in counted.items()
    }
    trained, rows = trained_features(settings, ledger)
    reading = Reading(why="stable's snapshots are not here")
    if rows:
        from validation.prompt_drift import prompt_drift

        reading = prompt_drift(live, trained, prompts - base.prompts, rows, config.prompts_min)
    window = config.rows["prompt_drift"].window_seconds if "prompt_drift" in config.rows else 0.0
    if now - base.since_seconds >= window:
        base = Drift(now, process, prompts, counted)
    return replace(
        remembered,
        drift=base,
        rare={**remembered.rare, "prompt_drift": reading},
        asked_at={**remembered.asked_at, "prompt_drift": now},
    )


def trained_features(
    settings: Settings, ledger: Ledger
) -> tuple[Mapping[str, Mapping[str, float]], int]:
    """Return the features of the prompts that the last promoted versions were trained on, and how
    many those are. Counted once for each snapshot, then read from a file beside the snapshots."""
    promoted = ledger.promoted(settings.service, settings.namespace, limit=SNAPSHOTS_MAX)
    ids = dict.fromkeys(release.candidate.snapshot_id for release in promoted)
    whole: dict[str, Counter[str]] = {}
    rows = 0
    for snapshot_id in filter(None, ids):
        found = _snapshot_features(settings.folder("snapshots"), snapshot_id)
        rows += found["rows"]
        for feature, buckets in found["features"].items():
            whole.setdefault(feature, Counter()).update(buckets)
    return whole, rows


def _snapshot_features(folder: Path, snapshot_id: str) -> dict[str, Any]:
    from core.files import write_whole

    kept = folder / "features" / f"{snapshot_id}.json"
    try:
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    except (OSError, ValueError):
        pass
    from lake.snapshots import find_snapshot, load_rows

    try:
        records: list[Record] = load_rows(find_snapshot(folder, snapshot_id))
    except SerinError:
        return {"rows": 0, "features": {}}
    counted: dict[str, Counter[str]] = {}
    for record in records:
        for (feature, bucket), count in features(record.prompt).items():
            counted.setdefault(feature, Counter())[bucket] += count
    made: dict[str, Any] = {"rows": len(records), "features": counted}
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(made).encode())
    return made

"""What nothing refers to any more, and how to remove it: the plan behind `serin gc`.

Stable, previous, every version that was lately stable, and whatever an open release needs are
protected by digest; anything young is left alone, as somebody may be working on it.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cli.environment import stack_environment
from cli.readiness import fetch_json
from cli.stack import sqlite_path
from cli.stack_file import read_stack
from core.keys import read_key
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.release import Release

DAY_SECONDS = 86_400.0
HOUR_SECONDS = 3_600.0
ASK_SECONDS_MAX = 10.0
RELEASES_MAX = 100_000
PAGE_ROWS = 200
BULK_ROWS_MAX = 50
BULKS_MAX = 10_000
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
CONTROL_FILES = ("services.json", "revisions.json", "routes.json", "processes.json")
SHORT_DIGEST = 12
"""Adapters' folders are named by the first characters of a digest."""


class RetentionConfig(BaseModel):
    """How much is kept beside what is protected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: int = Field(default=5, ge=0, description="newest bundles, adapters, snapshots, stories")
    stable_keep: int = Field(default=3, ge=2, description="versions that were last stable")
    days: float = Field(default=30, ge=0, description="age of reports, logs and runs")
    hours_min: float = Field(default=24, ge=0, description="nothing younger is touched")
    audit_days: float = Field(default=365, ge=0, description="age of segments of the audit")
    lake_hours: int = Field(default=168, ge=0, description="age of files that no version needs")


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that may go; `bytes` is None where it is not files of ours."""

    kind: str
    name: str
    bytes: int | None
    remove: Callable[[], None] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Protected:
    """Digests and ids that must stay."""

    bundles: frozenset[str]
    adapters: frozenset[str]
    snapshots: frozenset[str]

    def names(self, text: str) -> bool:
        """Whether a file or folder name mentions something protected, by its first characters."""
        known = self.bundles | self.adapters | self.snapshots
        return any(digest[:SHORT_DIGEST] in text for digest in known)


def leftovers(settings: Settings, config: RetentionConfig) -> Iterator[Leftover]:
    """Yield what may go. Raises UnavailableError when the ledger cannot say what is needed."""
    kept = protected(settings, config)
    old = time.time() - max(config.days * DAY_SECONDS, config.hours_min * HOUR_SECONDS)
    young = time.time() - config.hours_min * HOUR_SECONDS
    home = settings.home
    bundles = [path for path in _entries(home / "bundles") if path.name not in kept.bundles]
    finished = [path for path in bundles if not path.name.startswith(".")]
    yield from _paths("bundle", _beyond(finished, config.keep, young))
    yield from _paths("unfinished bundle", _before(set(bundles) - set(finished), young))
    for kind, folder in (("adapter", "adapters"), ("answers", "answers"), ("verdict", "judged")):
        free = [path for path in _entries(home / folder) if not kept.names(path.name)]
        yield from _paths(kind, _beyond(free, config.keep, young))
    yield from _snapshots(settings, kept, config, young)
    yield from _paths("report", _before(_entries(home / "reports"), old))
    yield from _paths("log", _before(_entries(home / "logs"), old))
    stories = [path for path in _entries(home / "stories") if not read_stack(path).living]
    yield from _paths("story", _beyond(stories, config.keep, young))
    yield from _audit(settings, config)
    yield from _lake_files(settings, config)
    yield from _prefect_runs(settings, old)
    yield from _mlflow_runs(settings, old)


def protected(settings: Settings, config: RetentionConfig) -> Protected:
    """Return what stable, previous and every open release stand on, of every service."""
    bundles: set[str] = set()
    adapters: set[str] = set()
    snapshots: set[str] = set()
    for release in _needed_releases(settings, config):
        candidate = release.candidate
        states = () if release.final else (release.before, release.goal)
        bundles |= {candidate.bundle_digest, *(s.bundle_digest for s in states if s)}
        adapters.add(candidate.adapter_digest)
        snapshots.add(candidate.snapshot_id)
    for name in CONTROL_FILES:
        path = settings.home / "control" / name
        if path.exists():
            bundles |= {*DIGEST.findall(path.read_text())}
    for tags in _aliased_versions(settings):
        bundles.add(tags.get("bundle_digest", ""))
        adapters.add(tags.get("adapter_digest", ""))
        snapshots.add(tags.get("snapshot_id", ""))
    return Protected(*(frozenset(found - {""}) for found in (bundles, adapters, snapshots)))


def _needed_releases(settings: Settings, config: RetentionConfig) -> list["Release"]:
    path = sqlite_path(settings.ledger_url)
    if path is not None and not path.exists():
        return []
    from rollout.ledger import Ledger

    ledger = Ledger(settings.ledger_url)
    releases = ledger.releases(None, settings.namespace, RELEASES_MAX)
    needed = [release for release in releases if not release.final]
    for service in {release.service for release in releases}:
        versions: set[str] = set()
        for release in reversed(ledger.promoted(service, settings.namespace)):
            if len(versions | {release.candidate.model_version}) > config.stable_keep:
                break
            versions.add(release.candidate.model_version)
            needed.append(release)
    return needed


def _aliased_versions(settings: Settings) -> Iterator[dict[str, str]]:
    """Yield the tags of the versions that MLflow has an alias for, when its server answers."""
    if not settings.mlflow_url:
        return
    for version in _mlflow_versions(settings):
        if version.get("aliases"):
            yield {tag["key"]: tag["value"] for tag in version.get("tags", [])}


def _mlflow_versions(settings: Settings) -> list[dict[str, Any]]:
    url = f"{settings.mlflow_url}/api/2.0/mlflow/model-versions/search?max_results=1000"
    found = fetch_json(url, ASK_SECONDS_MAX)
    return list((found or {}).get("model_versions", []))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _touched(path: Path) -> float:
    return path.lstat().st_mtime


def _beyond(paths: Iterable[Path], keep: int, young: float) -> list[Path]:
    """Return all but the `keep` newest, and none touched after `young`."""
    newest_first = sorted(paths, key=_touched, reverse=True)
    return _before(newest_first[keep:], young)


def _before(paths: Iterable[Path], moment: float) -> list[Path]:
    return [path for path in paths if _touched(path) <= moment]


def _paths(kind: str, paths: Iterable[Path]) -> Iterator[Leftover]:
    for path in paths:
        yield Leftover(kind, path.name, _size(path), partial(_remove, path))


def _size(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _snapshots(
    settings: Settings, kept: Protected, config: RetentionConfig, young: float
) -> Iterator[Leftover]:
    folder = settings.home / "snapshots"
    if not folder.is_dir():
        return
    from lake.snapshots import old_snapshots

    doomed = old_snapshots(folder, kept.snapshots, config.keep, dry_run=True)
    yield from _paths("snapshot", _before(doomed, young))


def _audit(settings: Settings, config: RetentionConfig) -> Iterator[Leftover]:
    from observability.audit_retention import old_segments, retire

    folder = settings.home / "audit"
    seconds = max(config.audit_days * DAY_SECONDS, config.hours_min * HOUR_SECONDS)
    for old in old_segments(folder, time.time() - seconds):
        key = read_key(settings.home / "control" / "audit.key")
        act = partial(retire, folder, key, old)
        yield Leftover("audit", f"{old.process}, segments {old.first}-{old.last}", old.bytes, act)


def _lake_files(settings: Settings, config: RetentionConfig) -> Iterator[Leftover]:
    if "://" not in settings.lake_uri and not Path(settings.lake_uri).is_dir():
        return
    from lake.table import Lake

    lake = Lake(settings.lake_uri)
    hours = max(config.lake_hours, int(config.hours_min))
    count = sum(len(files) for files in lake.retention(hours, dry_run=True).files.values())
    if count:
        act = partial(_vacuum, settings.lake_uri, hours)
        yield Leftover("lake", f"{count} unneeded files", None, act)


def _vacuum(uri: str, hours: int) -> None:
    from lake.table import Lake

    Lake(uri).retention(hours, dry_run=False)


def _prefect_runs(settings: Settings, old: float) -> Iterator[Leftover]:
    """Yield the ended flow runs of this home's Prefect server."""
    if not _is_ours(settings, "prefect_url", settings.prefect_url):
        return
    url = f"{settings.prefect_url}/flow_runs"
    ended = {
        "end_time": {"before_": datetime.fromtimestamp(old, UTC).isoformat()},
        "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}},
    }
    count = fetch_json(f"{url}/count", ASK_SECONDS_MAX, {"flow_runs": ended})
    if count:
        yield Leftover("flow runs", f"{count} in Prefect", None, partial(_forget, url, ended))


def _forget(url: str, ended: dict[str, Any]) -> None:
    content = {"flow_runs": ended, "limit": BULK_ROWS_MAX}
    for _ in range(BULKS_MAX):
        found = fetch_json(f"{url}/bulk_delete", ASK_SECONDS_MAX, content)
        if not found or not found["deleted"]:
            return


def _is_ours(settings: Settings, name: str, url: str) -> bool:
    """Whether a server is this home's own: nothing is deleted from anybody else's."""
    return bool(url) and read_stack(settings.home).addresses.get(name) == url


def _mlflow_runs(settings: Settings, old: float) -> Iterator[Leftover]:
    """Yield the ended runs of a local MLflow server that no registered version came from."""
    if not _is_ours(settings, "mlflow_url", settings.mlflow_url):
        return
    api = f"{settings.mlflow_url}/api/2.0/mlflow"
    experiments = fetch_json(f"{api}/experiments/search", ASK_SECONDS_MAX, {"max_results": 1000})
    ids = [item["experiment_id"] for item in (experiments or {}).get("experiments", [])]
    needed = {version.get("run_id") for version in _mlflow_versions(settings)}
    query = {
        "experiment_ids": ids,
        "filter": f"attributes.end_time < {int(old * 1000)}",
        "max_results": PAGE_ROWS,
    }
    found = fetch_json(f"{api}/runs/search", ASK_SECONDS_MAX, query) if ids else None
    runs = [run["info"]["run_id"] for run in (found or {}).get("runs", [])]
    doomed = [run for run in runs if run not in needed]
    if doomed:
        act = partial(_purge, settings, api, doomed)
        yield Leftover("runs", f"{len(doomed)} in MLflow", None, act)


def _purge(settings: Settings, api: str, ids: list[str]) -> None:
    for run_id in ids:
        fetch_json(f"{api}/runs/delete", ASK_SECONDS_MAX, {"run_id": run_id})
    folder = settings.home / "mlflow"
    # Deleting only hides a run; MLflow's own collector frees its rows and files.
    command = [
        sys.executable, "-m", "mlflow", "gc", "--run-ids", ",".join(ids),
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
        "--tracking-uri", settings.mlflow_url,
    ]  # fmt: skip
    environment = {"PATH": "", **stack_environment(settings)}
    subprocess.run(command, env=environment, check=False, capture_output=True, timeout=120)

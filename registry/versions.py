"""Registered model versions: an adapter, all that it came from, and the aliases that name its role.

Aliases: stable (promoted), candidate (newest that passed the gates), previous (stable before).
"""

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.contracts import Figure, SnapshotRef, Verdict
from core.digests import digest_bytes, digest_json
from core.errors import ConflictError, IntegrityError, NotFoundError, RefusedError
from registry.artifacts import check_adapter, fetch, fetch_adapter, store_adapter
from registry.connection import Connection

Alias = Literal["stable", "candidate", "previous"]
RECORD_FOLDER = "serin"
LINEAGE_FILE, VERDICT_FILE, PAGE_FILE = "lineage.json", "verdict.json", "verdict.md"
MODEL_SCHEME = "models:/"
KEY, REPLACED = "registration", "replaced_version"
ERASED = "erased_records"
VERSIONS_MAX = 1000
GIT_SECONDS_MAX = 10
TAG_LENGTH_MAX = 5000


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version comes from. `slices` are all slices that it was trained on, ever.

    `config` and `metrics` hold the training's configuration and final values.
    """

    snapshot: SnapshotRef
    records_uri: str
    base_digest: str
    adapter_digest: str
    bundle_digest: str
    bundle_uri: str
    run_id: str
    parent_version: str | None = None
    slices: tuple[str, ...] = ()
    code_revision: str = "unknown"
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version as the registry's database knows it."""

    name: str
    version: str
    model_id: str
    run_id: str
    created_seconds: float
    aliases: tuple[str, ...]
    snapshot_id: str
    delta_version_last: int
    base_digest: str
    adapter_digest: str
    bundle_digest: str
    bundle_uri: str
    verdict_digest: str
    lineage_digest: str
    code_revision: str
    state: str
    reason: str
    erased: str = ""


class Registry:
    """The versions of one service in MLflow."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name

    @property
    def _client(self) -> Any:
        # anew each time: MLflow looks a version's model up at its process-wide address
        return self.connection.client()

    def register(
        self, adapter: Path, lineage: Lineage, verdict: Verdict, page: str = ""
    ) -> ModelVersion:
        """Register an adapter that passed its gates and name it `candidate`.

        Registering the same adapter, snapshot and verdict again gives the version that is there.
        `page` is the verdict as markdown. Raises RefusedError when the verdict is not a pass,
        IntegrityError when the adapter's files are not those of the lineage.
        """
        if verdict.outcome != "pass":
            raise RefusedError(
                f"the verdict is {verdict.outcome}, nothing is registered: "
                + "; ".join(verdict.reasons)
            )
        check_adapter(adapter, lineage.adapter_digest)
        key = digest_json(
            [lineage.adapter_digest, lineage.snapshot.snapshot_id, verdict.digest, lineage.run_id]
        )
        version = self._registered(key)
        if version is None:
            model_id = self._log_model(adapter, lineage, verdict, page)
            version = self._create_version(model_id, key, lineage, verdict)
        self.point("candidate", version)
        return self.get(version)

    def get(self, version: str) -> ModelVersion:
        """Read one version. Raises NotFoundError when there is none."""
        with self.connection.errors():
            found = self._client.get_model_version(self.name, version)
        return self._read(found, self.aliases())

    def find(self, alias: Alias) -> ModelVersion | None:
        """Read the version that has an alias; None when none has it."""
        version = self.aliases().get(alias)
        return None if version is None else self.get(version)

    def aliases(self) -> dict[str, str]:
        """All aliases and the versions that they name."""
        try:
            with self.connection.errors():
                found = self._client.get_registered_model(self.name).aliases
        except NotFoundError:
            return {}
        return {str(alias): str(version) for alias, version in found.items()}

    def versions(self) -> list[ModelVersion]:
        """The newest VERSIONS_MAX versions, newest first."""
        with self.connection.errors():
            found = self._client.search_model_versions(
                f"name = '{self.name}'", max_results=VERSIONS_MAX
            )
        aliases = self.aliases()
        read = [self._read(item, aliases) for item in found]
        return sorted(read, key=lambda item: -int(item.version))

    def point(self, alias: Alias, version: str) -> None:
        """Give a version an alias, taking it from the one that has it."""
        with self.connection.errors():
            self._client.set_registered_model_alias(self.name, alias, version)

    def promote(self, version: str) -> None:
        """Make a version stable, the stable one before it previous; it is no candidate any more.

        May be repeated: after a crash at any point the same call ends in the same aliases.
        """
        self.get(version)
        stable = self.aliases().get("stable")
        if stable != version:
            if stable is not None:
                self._tag(version, {REPLACED: stable})
                self.point("previous", stable)
            self.point("stable", version)
        self._tag(version, {"state": "promoted", "reason": ""})
        self._drop("candidate", version)

    def roll_back(self, version: str, reason: str, to: str | None = None) -> ModelVersion | None:
        """Take a promoted version's place back: stable is `to`, or else the previous version.

        A version that is not stable only stops being the candidate. May be repeated. Returns the
        stable version after it. Raises NotFoundError when there is no version to go back to.
        """
        aliases = self.aliases()
        if aliases.get("stable") == version:
            target = to or aliases.get("previous")
            if target is None or target == version:
                raise NotFoundError(f"{self.name} has no version before {version} to return to")
            self.get(target)
            self.point("stable", target)
        if (stable := self.aliases().get("stable")) is not None:
            self._restore_previous(stable, version)
        self.withdraw(version, reason)
        return self.find("stable")

    def _restore_previous(self, stable: str, rejected: str) -> None:
        """Call previous what `stable` itself had replaced; none is better than a wrong one."""
        if self.aliases().get("previous") not in (stable, rejected):
            return
        with self.connection.errors():
            before = self._client.get_model_version(self.name, stable).tags.get(REPLACED)
        if before is not None and before not in (stable, rejected):
            self.point("previous", str(before))
        else:
            self._drop("previous", self.aliases()["previous"])

    def withdraw(self, version: str, reason: str) -> None:
        """A version that is not to be released: no candidate any more, with the reason."""
        self._drop("candidate", version)
        self._tag(version, {"state": "withdrawn", "reason": reason})

    def mark_erased(self, version: str, text: str) -> None:
        """Say of a version that records it was trained on were erased since."""
        self._tag(version, {ERASED: text})

    def lineage(self, version: str) -> Lineage:
        """Read all that a version came from.

        Raises IntegrityError when the file is not the one whose digest was recorded.
        """
        found = self.get(version)
        content = self._file(found, LINEAGE_FILE)
        if digest_bytes(content) != found.lineage_digest:
            raise IntegrityError(f"lineage of version {version} is not the one recorded")
        return msgspec.json.decode(content, type=Lineage)

    def verdict(self, version: str) -> Verdict:
        """Read the verdict that a version was registered with; errors as for `lineage`."""
        found = self.get(version)
        try:
            verdict = msgspec.json.decode(self._file(found, VERDICT_FILE), type=Verdict)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"verdict of version {version} is malformed: {error}") from error
        if verdict.digest != found.verdict_digest:
            raise IntegrityError(f"verdict of version {version} is not the one recorded")
        return verdict

    def fetch_adapter(self, version: str, folder: Path) -> Path:
        """Return `folder` with a version's adapter, checked against the recorded digest."""
        found = self.get(version)
        return fetch_adapter(self.connection, found.model_id, found.adapter_digest, folder)

    def _log_model(self, adapter: Path, lineage: Lineage, verdict: Verdict, page: str) -> str:
        client, experiment = self._client, self.connection.experiment_id()
        with self.connection.errors():
            model = client.create_logged_model(
                experiment,
                name=self.name,
                source_run_id=lineage.run_id,
                model_type="lora-adapter",
                tags={"adapter_digest": lineage.adapter_digest},
            )
        store_adapter(self.connection, client, model.model_id, adapter)
        with tempfile.TemporaryDirectory() as scratch, self.connection.errors():
            for name, content in (
                (LINEAGE_FILE, _encoded(lineage)),
                (VERDICT_FILE, _encoded(verdict)),
                (PAGE_FILE, page.encode()),
            ):
                (Path(scratch) / name).write_bytes(content)
            client.log_model_artifacts(model.model_id, scratch, artifact_path=RECORD_FOLDER)
            client.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)

    def _create_version(self, model_id: str, key: str, lineage: Lineage, verdict: Verdict) -> str:
        with suppress(ConflictError), self.connection.errors():  # there since the first one
            self._client.create_registered_model(self.name)
        snapshot = lineage.snapshot
        tags = {
            KEY: key,
            "snapshot_id": snapshot.snapshot_id,
            "delta_version_first": str(snapshot.version_first),
            "delta_version_last": str(snapshot.version_last),
            "base_digest": lineage.base_digest,
            "adapter_digest": lineage.adapter_digest,
            "bundle_digest": lineage.bundle_digest,
            "bundle_uri": lineage.bundle_uri,
            "verdict_digest": verdict.digest,
            "lineage_digest": digest_bytes(_encoded(lineage)),
            "code_revision": lineage.code_revision,
            **{f"gate.{item.gate}": item.outcome for item in verdict.evidence},
        }
        with self.connection.errors():
            created = self._client.create_model_version(
                self.name,
                source=f"{MODEL_SCHEME}{model_id}",
                run_id=lineage.run_id,
                tags=tags,
                model_id=model_id,  # a server refuses a source without it
            )
        return str(created.version)

    def _registered(self, key: str) -> str | None:
        """The version that was registered with this key, if any: a retried call finds its own."""
        query = f"name = '{self.name}' and tags.`{KEY}` = '{key}'"
        with self.connection.errors():
            found = self._client.search_model_versions(query, max_results=1)
        return str(found[0].version) if found else None

    def _file(self, found: ModelVersion, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch(self.connection, found.model_id, RECORD_FOLDER, Path(scratch))
            try:
                return (folder / name).read_bytes()
            except FileNotFoundError as error:
                raise NotFoundError(f"version {found.version} has no {name}") from error

    def _tag(self, version: str, tags: Mapping[str, str]) -> None:
        with self.connection.errors():
            for name, text in tags.items():
                self._client.set_model_version_tag(self.name, version, name, text[:TAG_LENGTH_MAX])

    def _drop(self, alias: Alias, version: str) -> None:
        """Take an alias away if this version has it."""
        if self.aliases().get(alias) == version:
            with self.connection.errors():
                self._client.delete_registered_model_alias(self.name, alias)

    def _read(self, found: Any, aliases: Mapping[str, str]) -> ModelVersion:
        tags = {str(name): str(value) for name, value in found.tags.items()}
        source = str(found.source)
        if not source.startswith(MODEL_SCHEME) or KEY not in tags:
            raise NotFoundError(
                f"version {found.version} of {self.name} was not registered by Serin"
            )
        version = str(found.version)
        return ModelVersion(
            name=self.name,
            version=version,
            # the entity's own model_id comes back empty: its source names the model
            model_id=source.removeprefix(MODEL_SCHEME),
            run_id=str(found.run_id),
            created_seconds=found.creation_timestamp / 1000,
            aliases=tuple(sorted(name for name, other in aliases.items() if other == version)),
            snapshot_id=tags["snapshot_id"],
            delta_version_last=int(tags["delta_version_last"]),
            base_digest=tags["base_digest"],
            adapter_digest=tags["adapter_digest"],
            bundle_digest=tags["bundle_digest"],
            bundle_uri=tags["bundle_uri"],
            verdict_digest=tags["verdict_digest"],
            lineage_digest=tags["lineage_digest"],
            code_revision=tags["code_revision"],
            state=tags.get("state", "registered"),
            reason=tags.get("reason", ""),
            erased=tags.get(ERASED, ""),
        )


def code_revision(folder: Path) -> str:
    """The git commit of a folder, with `-dirty` for uncommitted changes; `unknown` without git."""
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    answers = []
    for command in commands:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=GIT_SECONDS_MAX,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        answers.append(done.stdout.strip())
    return answers[0] + ("-dirty" if answers[1] else "")


def _encoded(value: Lineage | Verdict) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)

"""Revisions: what one state of spec.predictor asks a process to load, and which one is what.

Frozen values only; the storage address is turned into a folder here and checked against the roots.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from core.digests import digest_json
from core.errors import InputError
from serving.local.admission import STOP_ANNOTATION, VERSION_VARIABLE
from serving.local.objects import Object

DIGEST_FORM = re.compile(r"[0-9a-f]{64}")
# KServe keeps these away from the revision template; every other annotation and label is in it.
REPLICAS = ("minReplicas", "maxReplicas")
NOT_IN_TEMPLATE = ("kubectl.kubernetes.io/last-applied-configuration", STOP_ANNOTATION)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a revision failed, or how its process last ended."""

    message: str
    time: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable version of a service's predictor. `ready` means: was ready once.

    `fault` says why it cannot even be started (storage address, replicas); `bundle_digest` is what
    the process reported when it became ready.
    """

    name: str
    number: int
    template_digest: str
    bundle: str
    model_version: str
    fault: str | None = None
    expected_digest: str | None = None
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    replicas_min: int = 1
    phase: Literal["loading", "ready", "failed"] = "loading"
    bundle_digest: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """One entry of status.traffic: a revision and its percent; the other than latest is `prev`."""

    revision: str
    percent: int
    latest: bool


@dataclass(frozen=True, slots=True)
class ServiceState:
    """All that the control plane remembers of one service beside its object.

    `traffic` is what the gateway applied; `knative_generation` counts changes of template or
    traffic targets, as the Knative service under a real InferenceService does.
    """

    uid: str
    namespace: str
    name: str
    revisions: dict[str, Revision] = field(default_factory=dict)
    number_last: int = 0
    latest_created: str = ""
    latest_ready: str = ""
    latest_rolledout: str = ""
    previous_rolledout: str = ""
    targets: tuple[Share, ...] = ()
    traffic: tuple[Share, ...] = ()
    knative_generation: int = 0

    @property
    def latest(self) -> Revision:
        """The latest created revision."""
        return self.revisions[self.latest_created]

    def with_revision(self, revision: Revision) -> "ServiceState":
        """Return the state with one revision added or replaced."""
        return replace(self, revisions={**self.revisions, revision.name: revision})


def template(found: Object) -> dict[str, Any]:
    """Return the part of an InferenceService whose change makes a new revision.

    Replicas are not in it, other than in a cluster: more processes of what serves need no new
    version of it.
    """
    metadata = found["metadata"]
    predictor = dict(found["spec"]["predictor"])
    for name in ("canaryTrafficPercent", *REPLICAS):
        predictor.pop(name, None)
    annotations = metadata.get("annotations") or {}
    return {
        "predictor": predictor,
        "labels": metadata.get("labels") or {},
        "annotations": {
            name: annotations[name] for name in annotations if name not in NOT_IN_TEMPLATE
        },
    }


def with_current_revision(
    state: ServiceState, found: Object, roots: Sequence[Path], replicas_max: int
) -> ServiceState:
    """Return the state with a new revision if the template is not the latest created one's, and
    with the replicas that are asked for now in all of them, up to this machine's most."""
    digest = digest_json(template(found))
    predictor = found["spec"]["predictor"]
    replicas_min: int = predictor.get("minReplicas", 1)
    if state.latest_created and state.latest.template_digest == digest:
        too_many = state.latest.fault is not None and state.latest.replicas_min > replicas_max
        if not (too_many and replicas_min <= replicas_max):
            return with_replicas(state, min(replicas_min, replicas_max))
    number = state.number_last + 1
    model = predictor["model"]
    variables = tuple((item["name"], item.get("value", "")) for item in model.get("env", []))
    revision = Revision(
        name=f"{state.name}-{number:05d}",
        number=number,
        template_digest=digest,
        bundle="",
        model_version=dict(variables)[VERSION_VARIABLE],
        arguments=tuple(model.get("args", [])),
        environment=variables,
        replicas_min=replicas_min,
    )
    try:
        if revision.replicas_min > replicas_max:
            raise InputError(
                f"minReplicas {revision.replicas_min} is more than this machine's {replicas_max}; "
                "lower it, or raise replicas_max"
            )
        folder = bundle_folder(model["storageUri"], roots)
        names = (model["storageUri"].rstrip("/").rpartition("/")[2], folder.name)
        expected = next((name for name in names if DIGEST_FORM.fullmatch(name)), None)
        revision = replace(revision, bundle=str(folder), expected_digest=expected)
    except InputError as error:
        revision = replace(revision, fault=str(error))
    state = with_replicas(state, min(replicas_min, replicas_max))
    state = replace(state, number_last=number, latest_created=revision.name)
    return state.with_revision(revision)


def with_replicas(state: ServiceState, replicas_min: int) -> ServiceState:
    """Return the state with this many replicas of each revision that can be started."""
    changed = {
        name: replace(revision, replicas_min=replicas_min)
        for name, revision in state.revisions.items()
        if revision.fault is None and revision.replicas_min != replicas_min
    }
    return replace(state, revisions={**state.revisions, **changed}) if changed else state


def bundle_folder(storage_uri: str, roots: Sequence[Path]) -> Path:
    """Return the folder that a storageUri means: file://, or an absolute path, below a root.

    Raises InputError for any other scheme or host, for `..`, for a link that leads out of the
    roots, and for a folder that does not exist. A bundle is known by its digest: where its folder
    is gone, the one of the same digest below a root is meant, as in a home that was restored.
    """
    parts = urlsplit(storage_uri)
    if parts.scheme not in ("", "file") or parts.netloc or parts.query or parts.fragment:
        raise InputError(f"storageUri {storage_uri!r} is not a local file:///... address")
    text = unquote(parts.path)
    given = Path(text)
    if not given.is_absolute() or ".." in given.parts or "\0" in text:
        raise InputError(f"storageUri {storage_uri!r} must be an absolute path without '..'")
    allowed = [root.resolve() for root in roots]
    if DIGEST_FORM.fullmatch(given.name) and not given.exists():
        given = next((root / given.name for root in allowed if (root / given.name).exists()), given)
    folder = given.resolve()
    if not any(folder.is_relative_to(root) and folder != root for root in allowed):
        places = ", ".join(str(root) for root in allowed)
        raise InputError(f"storageUri {storage_uri!r} is not below {places}; put the bundle there")
    if not folder.is_dir():
        raise InputError(f"storageUri {storage_uri!r}: there is no such folder; build the bundle")
    return folder


def without_retired(state: ServiceState, kept: Iterable[str]) -> ServiceState:
    """Return the state with these revisions only: what is remembered is what is needed."""
    needed = set(kept)
    if needed >= state.revisions.keys():
        return state
    revisions = {name: state.revisions[name] for name in state.revisions if name in needed}
    return replace(state, revisions=revisions)

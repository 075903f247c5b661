"""Which InferenceServices are let in: KServe's checks and a percent range, nothing silent.

Fields that only a cluster can act on are kept and named in a warning; unknown ones are refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serving.local.objects import API_VERSION, KIND, Object
from serving.local.refusals import Cause, bad_request, invalid

MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
STOP_ANNOTATION = "serving.kserve.io/stop"
MODE = "Knative"
OLD_MODES = {"Serverless": "Knative", "RawDeployment": "Standard"}
MODEL_FORMAT = "serin"
RUNTIME = "serin"
VERSION_VARIABLE = "SERIN_MODEL_VERSION"

NAME_FORM = "[a-z]([-a-z0-9]*[a-z0-9])?"
NAME_LENGTH_MAX = 50
LABEL_FORM = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
VERSION_FORM = "[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
VARIABLE_FORM = "[A-Za-z_][A-Za-z0-9_]*"
BLOCKED_VARIABLES = re.compile(
    "PYTHON.*|LD_.*|PATH|SERIN_HOME|SERIN_ALLOW_FAULTS|SERIN_PREDICTOR_(TOKEN|POLICY_FOLDER|VLLM)"
)
"""What KServe blocks (PYTHONPATH), what loads other code or asks other servers, what switches
faults on, and what would change who may ask a predictor or what it holds back."""
OWN_OPTIONS = ("--bundle", "--config", "--host", "--model-name", "--model-version", "--revision",
               "--http-port", "--port-file", "--expected-digest", "--threads")  # fmt: skip

PREDICTOR_FIELDS = {"canaryTrafficPercent", "minReplicas", "maxReplicas", "model"}
MODEL_FIELDS = {"modelFormat", "runtime", "storageUri", "args", "env"}
CLUSTER_PREDICTOR_FIELDS = {
    "affinity", "annotations", "automountServiceAccountToken", "autoScaling", "batcher",
    "confidential", "containerConcurrency", "imagePullSecrets", "labels", "logger",
    "nodeSelector", "priorityClassName", "runtimeClassName", "scaleMetric", "scaleTarget",
    "securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "timeout",
    "tolerations", "topologySpreadConstraints",
}  # fmt: skip
CLUSTER_MODEL_FIELDS = {
    "image", "imagePullPolicy", "livenessProbe", "ports", "protocolVersion", "readinessProbe",
    "resources", "runtimeVersion", "securityContext", "startupProbe", "storage", "volumeMounts",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Admitted:
    """An object as it is stored, and warnings for the caller."""

    found: Object
    warnings: tuple[str, ...]


def admit(given: Mapping[str, Any], old: Object | None) -> Admitted:
    """Check a whole new object (metadata filled in by the store) and normalise it.

    Raises Refusal: 400 for another kind, 422 with every cause for what breaks a rule.
    """
    if given.get("apiVersion") != API_VERSION or given.get("kind") != KIND:
        raise bad_request(f"the object must be {API_VERSION} {KIND}")
    metadata = dict(given["metadata"])
    name = metadata["name"]
    causes = [*_metadata_causes(metadata)]
    if not causes:
        metadata["annotations"], mode_causes = _mode(metadata, old)
        causes += mode_causes
    spec, spec_causes, warnings = _spec(given.get("spec"))
    causes += spec_causes
    if causes:
        raise invalid(name, causes)
    for empty in [field for field in ("annotations", "labels") if not metadata.get(field)]:
        metadata.pop(empty, None)
    found = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    return Admitted(found, tuple(warnings))


def _metadata_causes(metadata: Mapping[str, Any]) -> Iterator[Cause]:
    name = metadata["name"]
    if not isinstance(name, str) or not re.fullmatch(NAME_FORM, name):
        yield Cause("metadata.name", f"Invalid value: {name!r}: must match '{NAME_FORM}'")
    elif len(name) > NAME_LENGTH_MAX:
        yield Cause("metadata.name", f"Too long: at most {NAME_LENGTH_MAX} characters")
    if not re.fullmatch(LABEL_FORM, metadata["namespace"]):
        yield Cause("metadata.namespace", f"Invalid value: {metadata['namespace']!r}")
    for field in ("labels", "annotations"):
        values = metadata.get(field) or {}
        if not isinstance(values, dict) or not all(
            isinstance(value, str) for value in values.values()
        ):
            yield Cause(f"metadata.{field}", "Invalid value: names and values must be strings")


def _mode(metadata: Mapping[str, Any], old: Object | None) -> tuple[dict[str, str], list[Cause]]:
    annotations = dict(metadata.get("annotations") or {})
    if MODE_ANNOTATION not in annotations:
        return annotations, []
    mode = OLD_MODES.get(annotations[MODE_ANNOTATION], annotations[MODE_ANNOTATION])
    annotations[MODE_ANNOTATION] = mode
    if mode == MODE:
        return annotations, []
    message = f"Unsupported value: {mode!r}: this control plane serves {MODE} mode only"
    if old is not None:
        message = f"update rejected: deploymentMode cannot be changed from '{MODE}' to '{mode}'"
    return annotations, [Cause(f"metadata.annotations[{MODE_ANNOTATION}]", message)]


def _spec(given: Any) -> tuple[dict[str, Any], list[Cause], list[str]]:
    if not isinstance(given, dict) or not isinstance(given.get("predictor"), dict):
        return {}, [_required("spec.predictor", "an object with a model")], []
    causes = []
    for field in given.keys() - {"predictor"}:
        why = f"is denied in {MODE} mode; use spec.predictor.canaryTrafficPercent"
        if field != "canary":
            why = "is not supported on one machine"
        causes.append(Cause(f"spec.{field}", f"Forbidden: {why}", "FieldValueForbidden"))
    predictor = _without_nulls(given["predictor"])
    model = predictor.get("model")
    causes += _predictor_causes(predictor)
    warnings = _ignored("spec.predictor", predictor, CLUSTER_PREDICTOR_FIELDS)
    if isinstance(model, dict):
        predictor["model"] = model = _without_nulls(model)
        causes += _model_causes(model)
        warnings += _ignored("spec.predictor.model", model, CLUSTER_MODEL_FIELDS)
    else:
        causes.append(_required("spec.predictor.model", "modelFormat, runtime and storageUri"))
    return {"predictor": predictor}, causes, warnings


def _predictor_causes(predictor: Mapping[str, Any]) -> Iterator[Cause]:
    where = "spec.predictor"
    yield from _unknown(where, predictor, PREDICTOR_FIELDS | CLUSTER_PREDICTOR_FIELDS)
    yield from _integer(where, predictor, "canaryTrafficPercent", 0, 100)
    yield from _integer(where, predictor, "minReplicas", 0, None)
    yield from _integer(where, predictor, "maxReplicas", 0, None)
    least, most = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if isinstance(least, int) and isinstance(most, int) and 0 < most < least:
        yield Cause(f"{where}.minReplicas", "MinReplicas cannot be greater than MaxReplicas.")


def _model_causes(model: Mapping[str, Any]) -> Iterator[Cause]:
    where = "spec.predictor.model"
    yield from _unknown(where, model, MODEL_FIELDS | CLUSTER_MODEL_FIELDS | {"name"})
    if model.get("name"):
        yield Cause(f"{where}.name", "the 'name' field is not allowed in standard predictor")
    model_format = model.get("modelFormat")
    if not isinstance(model_format, dict) or model_format.get("name") != MODEL_FORMAT:
        yield Cause(f"{where}.modelFormat.name", f'Unsupported value: only "{MODEL_FORMAT}"')
    if model.get("runtime", RUNTIME) != RUNTIME:
        yield Cause(f"{where}.runtime", f'Unsupported value: only "{RUNTIME}" runs here')
    if not isinstance(model.get("storageUri"), str) or not model["storageUri"]:
        yield _required(f"{where}.storageUri", "file:// address of a bundle folder")
    yield from _argument_causes(f"{where}.args", model.get("args", []))
    yield from _variable_causes(f"{where}.env", model.get("env", []))


def _argument_causes(where: str, arguments: Any) -> Iterator[Cause]:
    if not isinstance(arguments, list) or not all(isinstance(item, str) for item in arguments):
        yield Cause(where, "Invalid value: must be a list of strings")
        return
    for argument in arguments:
        option = argument.partition("=")[0]
        # argparse also takes unambiguous beginnings of an option.
        if len(option) > 2 and any(own.startswith(option) for own in OWN_OPTIONS):
            yield Cause(where, f"Forbidden: {option} is set by the control plane")


def _variable_causes(where: str, variables: Any) -> Iterator[Cause]:
    if not isinstance(variables, list) or not all(isinstance(item, dict) for item in variables):
        yield Cause(where, "Invalid value: must be a list of {name, value}")
        return
    values: dict[str, str] = {}
    for position, variable in enumerate(variables):
        name, value = variable.get("name"), variable.get("value", "")
        here = f"{where}[{position}]"
        if not isinstance(name, str) or not re.fullmatch(VARIABLE_FORM, name):
            yield Cause(f"{here}.name", "Invalid value: letters, digits and _ only")
        elif BLOCKED_VARIABLES.fullmatch(name):
            yield Cause(here, f"setting {name} is not allowed for security reasons")
        elif not isinstance(value, str) or variable.keys() - {"name", "value"}:
            yield Cause(here, "Invalid value: only a plain string value is supported here")
        else:
            values[name] = value
    version = values.get(VERSION_VARIABLE)
    if version is None:
        yield _required(where, f"{VERSION_VARIABLE}, the registered model version")
    elif not re.fullmatch(VERSION_FORM, version):
        yield Cause(where, f"Invalid value: {VERSION_VARIABLE} must match '{VERSION_FORM}'")


def _integer(
    where: str, values: Mapping[str, Any], field: str, least: int, most: int | None
) -> Iterator[Cause]:
    value = values.get(field)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        message = f'Invalid value: "{kind}": must be of type integer'
        yield Cause(f"{where}.{field}", message, "FieldValueTypeInvalid")
    elif value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        yield Cause(f"{where}.{field}", f"Invalid value: {value}: must be {limits}")


def _unknown(where: str, values: Iterable[str], known: set[str]) -> Iterator[Cause]:
    for field in sorted(set(values) - known):
        message = "Forbidden: unknown, or not supported on one machine"
        yield Cause(f"{where}.{field}", message, "FieldValueForbidden")


def _ignored(where: str, values: Iterable[str], cluster: set[str]) -> list[str]:
    return [
        f"{where}.{field} is kept but has no effect on one machine"
        for field in sorted(set(values) & cluster)
    ]


def _required(field: str, what: str) -> Cause:
    return Cause(field, f"Required value: {what}", "FieldValueRequired")


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

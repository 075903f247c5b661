"""What is let in, what is refused and with which words."""

from copy import deepcopy
from typing import Any

import pytest

from serving.local.admission import admit
from serving.local.objects import merge_patch
from serving.local.refusals import Refusal

GOOD: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {
        "name": "assistant",
        "namespace": "default",
        "annotations": {"serving.kserve.io/deploymentMode": "Knative"},
    },
    "spec": {
        "predictor": {
            "canaryTrafficPercent": 5,
            "minReplicas": 1,
            "model": {
                "modelFormat": {"name": "serin"},
                "runtime": "serin",
                "storageUri": "file:///bundles/a",
                "args": ["--engine", "reference"],
                "env": [{"name": "SERIN_MODEL_VERSION", "value": "3"}],
            },
        }
    },
}


def changed(patch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = merge_patch(deepcopy(GOOD), patch)
    return found


def predictor(**fields: Any) -> dict[str, Any]:
    return changed({"spec": {"predictor": fields}})


def model(**fields: Any) -> dict[str, Any]:
    return predictor(model=fields)


def environment(*variables: dict[str, Any]) -> dict[str, Any]:
    return model(env=[*GOOD["spec"]["predictor"]["model"]["env"], *variables])


def test_a_good_object_is_kept_as_it_is() -> None:
    admitted = admit(GOOD, None)
    assert admitted.found == GOOD
    assert admitted.warnings == ()


REFUSED: list[tuple[dict[str, Any], str]] = [
    (predictor(canaryTrafficPercent=250), "canaryTrafficPercent: Invalid value: 250"),
    (predictor(canaryTrafficPercent=-1), "between 0 and 100"),
    (predictor(canaryTrafficPercent="5"), "must be of type integer"),
    (predictor(canaryTrafficPercent=5.5), "must be of type integer"),
    (predictor(canaryTrafficPercent=True), "must be of type integer"),
    (predictor(minReplicas=-1), "minReplicas: Invalid value: -1"),
    (predictor(minReplicas=3, maxReplicas=2), "MinReplicas cannot be greater than MaxReplicas"),
    (predictor(canaryTraficPercent=5), "spec.predictor.canaryTraficPercent: Forbidden"),
    (predictor(containers=[]), "spec.predictor.containers: Forbidden"),
    (predictor(model=None), "spec.predictor.model: Required"),
    (changed({"spec": {"canary": []}}), "spec.canary: Forbidden: is denied in Knative mode"),
    (changed({"spec": {"transformer": {}}}), "spec.transformer: Forbidden"),
    (changed({"spec": None}), "spec.predictor: Required"),
    (model(name="x"), "the 'name' field is not allowed in standard predictor"),
    (model(modelFormat={"name": "sklearn"}), "modelFormat.name: Unsupported value"),
    (model(runtime="kserve-huggingfaceserver"), "runtime: Unsupported value"),
    (model(storageUri=None), "storageUri: Required"),
    (model(storageUris=[]), "storageUris: Forbidden"),
    (model(args="--engine"), "must be a list of strings"),
    (model(args=["--bundle=/etc"]), "--bundle is set by the control plane"),
    (model(args=["--config", "/etc/passwd"]), "--config is set by the control plane"),
    (model(args=["--host", "0.0.0.0"]), "--host is set by the control plane"),
    (model(args=["--expected", "x"]), "--expected is set by the control plane"),
    (model(env=[]), "Required value: SERIN_MODEL_VERSION"),
    (model(env=[{"name": "SERIN_MODEL_VERSION", "value": "a\nb"}]), "SERIN_MODEL_VERSION must"),
    (environment({"name": "PYTHONPATH", "value": "/x"}), "setting PYTHONPATH is not allowed"),
    (environment({"name": "LD_PRELOAD", "value": "/x"}), "setting LD_PRELOAD is not allowed"),
    (environment({"name": "SERIN_ALLOW_FAULTS", "value": "1"}), "is not allowed for security"),
    (
        environment({"name": "SERIN_PREDICTOR_TOKEN", "value": "x" * 32}),
        "SERIN_PREDICTOR_TOKEN is",
    ),
    (environment({"name": "SERIN_PREDICTOR_VLLM", "value": "{}"}), "is not allowed for security"),
    (environment({"name": "SERIN_PREDICTOR_POLICY_FOLDER", "value": ""}), "is not allowed for"),
    (environment({"name": "A", "valueFrom": {}}), "only a plain string value"),
    (environment({"name": "A B", "value": ""}), "letters, digits"),
    (changed({"metadata": {"name": "Assistant"}}), "metadata.name: Invalid value"),
    (changed({"metadata": {"name": "a/../b"}}), "metadata.name: Invalid value"),
    (changed({"metadata": {"name": "a" * 51}}), "metadata.name: Too long"),
    (changed({"metadata": {"labels": {"a": 1}}}), "names and values must be strings"),
]


@pytest.mark.parametrize(("given", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_a_broken_rule_is_named(given: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal) as refused:
        admit(given, None)
    assert refused.value.code == 422
    assert why in str(refused.value)
    document = refused.value.document()
    assert document["reason"] == "Invalid"
    assert document["details"]["causes"]


def test_every_broken_rule_is_listed() -> None:
    with pytest.raises(Refusal) as refused:
        admit(predictor(canaryTrafficPercent=101, minReplicas=-1), None)
    assert [cause.field for cause in refused.value.causes] == [
        "spec.predictor.canaryTrafficPercent",
        "spec.predictor.minReplicas",
    ]


def test_another_kind_is_a_bad_request() -> None:
    with pytest.raises(Refusal) as refused:
        admit({**GOOD, "kind": "Deployment"}, None)
    assert refused.value.code == 400


def test_fields_for_a_cluster_are_kept_with_a_warning() -> None:
    given = changed({"spec": {"predictor": {"tolerations": [], "model": {"resources": {}}}}})
    admitted = admit(given, None)
    assert admitted.found == given
    assert admitted.warnings == (
        "spec.predictor.tolerations is kept but has no effect on one machine",
        "spec.predictor.model.resources is kept but has no effect on one machine",
    )


def test_a_null_removes_the_percent() -> None:
    assert (
        "canaryTrafficPercent"
        not in admit(predictor(canaryTrafficPercent=None), None).found["spec"]["predictor"]
    )


def mode(name: str) -> dict[str, Any]:
    return changed({"metadata": {"annotations": {"serving.kserve.io/deploymentMode": name}}})


def test_the_old_word_for_the_mode_is_understood() -> None:
    assert admit(mode("Serverless"), None).found == GOOD


@pytest.mark.parametrize("name", ["Standard", "RawDeployment", "ModelMesh"])
def test_another_mode_is_refused_rather_than_ignored(name: str) -> None:
    # kserve/kserve#4074, #5335: a percent was ignored without a word in the other mode.
    with pytest.raises(Refusal, match="serves Knative mode only"):
        admit(mode(name), None)
    with pytest.raises(Refusal, match="update rejected: deploymentMode cannot be changed"):
        admit(mode(name), GOOD)

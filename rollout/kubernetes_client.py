"""InferenceServices over the Kubernetes API: a cluster's, or the one-machine control plane's."""

import threading
from collections.abc import Callable
from typing import Any

from core.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from rollout.inference_service import API_VERSION, GROUP, PLURAL, Body

TIMEOUT_SECONDS = 10.0
MERGE_PATCH = "application/merge-patch+json"


class KubernetesClient:
    """Plain dicts through CustomObjectsApi: typed objects cannot remove a field."""

    def __init__(self, kube_url: str = "", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Reach `kube_url` without credentials (loopback), or else the cluster of the kubeconfig,
        or the one this runs in. Nothing is imported or opened before the first call."""
        self._kube_url = kube_url
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._custom_objects: Any = None

    def load(self) -> None:
        """Import the library (seconds on a busy machine) before it is needed.

        Raises ConfigurationError when no cluster is known.
        """
        with self._lock:
            if self._custom_objects is None:
                self._custom_objects = _custom_objects(self._kube_url)

    def get(self, namespace: str, name: str) -> Body | None:
        """See InferenceServices."""
        try:
            found: Body = self._call(
                "get_namespaced_custom_object", **self._where(namespace), name=name
            )
        except NotFoundError:
            return None
        return found

    def create(self, namespace: str, body: Body) -> Body:
        """See InferenceServices."""
        made: Body = self._call(
            "create_namespaced_custom_object", **self._where(namespace), body=body
        )
        return made

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        """See InferenceServices."""
        patched: Body = self._call(
            "patch_namespaced_custom_object",
            **self._where(namespace),
            name=name,
            body=body,
            _content_type=MERGE_PATCH,
        )
        return patched

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """See InferenceServices."""
        options: Body = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self._call(
                "delete_namespaced_custom_object",
                **self._where(namespace),
                name=name,
                body=options,
            )
        except NotFoundError:
            return

    def _where(self, namespace: str) -> dict[str, str]:
        return {"group": GROUP, "version": API_VERSION, "namespace": namespace, "plural": PLURAL}

    def _call(self, method: str, **arguments: Any) -> Any:
        self.load()
        call: Callable[..., Any] = getattr(self._custom_objects, method)
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(**arguments, _request_timeout=self._timeout_seconds)
        except ApiException as error:
            raise _translated(error.status, f"{error.reason}: {_message(error)}") from error
        except (HTTPError, OSError) as error:
            raise UnavailableError(f"the control plane does not answer: {error}") from error


def _custom_objects(kube_url: str) -> Any:
    from kubernetes import client, config

    configuration = client.Configuration()
    if kube_url:
        configuration.host = kube_url.rstrip("/")
        configuration.proxy = None  # an address given outright is reached directly
    else:
        try:
            config.load_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise ConfigurationError(
                "no control plane is known: start one with `serin up`, set SERIN_KUBE_URL, or give "
                f"a kubeconfig ({error})"
            ) from error
    configuration.retries = False  # whoever calls decides what to try again
    return client.CustomObjectsApi(client.ApiClient(configuration))


def _message(error: Any) -> str:
    return str(error.body or "")[:300]


def _translated(status: int | None, text: str) -> Exception:
    if status == 404:
        return NotFoundError(f"the control plane knows no such service: {text}")
    if status == 409:
        return ConflictError(f"the service was written meanwhile: {text}")
    if status in (400, 401, 403, 405, 413, 415, 422):
        return RefusedError(f"the control plane refused: {text}")
    return UnavailableError(f"the control plane failed ({status}): {text}")

"""A ledger and services that call out before and after each write, for tests of crashes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rollout.inference_service import Body, InferenceServices
from rollout.ledger import Ledger
from rollout.writer import Writer

T = TypeVar("T")
Inner = TypeVar("Inner", bound=InferenceServices)


class WatchedLedger(Ledger):
    """A ledger that calls `boundary` before and after each transaction."""

    boundary: Callable[[], None] = staticmethod(lambda: None)

    def write(self, work: Callable[[Writer], T]) -> T:
        self.boundary()
        result = super().write(work)
        self.boundary()
        return result


class WatchedServices(Generic[Inner]):
    """InferenceServices that call `boundary` before and after each write."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner
        self.boundary: Callable[[], None] = lambda: None

    def get(self, namespace: str, name: str) -> Body | None:
        return self.inner.get(namespace, name)

    def create(self, namespace: str, body: Body) -> Body:
        return self._watched(self.inner.create, namespace, body)

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        return self._watched(self.inner.patch, namespace, name, body)

    def delete(self, namespace: str, name: str, uid: str) -> None:
        self._watched(self.inner.delete, namespace, name, uid)

    def _watched(self, call: Callable[..., T], *arguments: Any) -> T:
        self.boundary()
        result = call(*arguments)
        self.boundary()
        return result

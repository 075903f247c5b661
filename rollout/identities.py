"""Asks the serving processes themselves what they serve; believes no control plane."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from core.keys import bearer, predictor_token
from core.settings import Settings

TIMEOUT_SECONDS = 2.0
ENDPOINTS_MAX = 64
IDENTITY_PATH = "/serin/identity"


@dataclass(frozen=True, slots=True)
class Identity:
    """What one process says of itself."""

    bundle_digest: str
    policy_hash: str


Identities = Callable[[str, str], tuple[Identity, ...] | None]
"""identities(namespace, service): every process in traffic, or None when one cannot be asked."""


def from_routes(settings: Settings) -> Identities:
    """Ask the endpoints in the one-machine control plane's routes file that have traffic."""
    path = settings.home / "control" / "routes.json"
    token = predictor_token(settings.home, settings.predictor_token.get_secret_value())

    def ask(namespace: str, service: str) -> tuple[Identity, ...] | None:
        urls = _urls(path, service)
        if not urls or len(urls) > ENDPOINTS_MAX:
            return None
        with ThreadPoolExecutor(len(urls)) as pool:
            found = list(pool.map(partial(_identity, token), urls))
        known = [identity for identity in found if identity is not None]
        return tuple(known) if len(known) == len(urls) else None

    return ask


def _urls(path: Path, service: str) -> list[str]:
    try:
        routes = json.loads(path.read_text())
        arms = routes["services"][service]["arms"]
        return [
            str(endpoint["url"])
            for arm in arms
            if arm["percent"]
            for endpoint in arm["endpoints"]
            if endpoint["ready"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # unknown is a value: nobody can be asked


def _identity(token: str, url: str) -> Identity | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": bearer(token)}
    try:
        asked = urllib.request.Request(url.rstrip("/") + IDENTITY_PATH, headers=headers)
        with opener.open(asked, timeout=TIMEOUT_SECONDS) as answer:
            content: dict[str, Any] = json.load(answer)
        return Identity(str(content["bundle_digest"]), str(content.get("policy_hash", "")))
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return None

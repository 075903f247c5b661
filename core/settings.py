"""Where things are: the environment read once, in one place, into one frozen value.

Precedence: environment variable, then the addresses that `serin up` wrote, then the default.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from core.errors import ConfigurationError

STACK_FILE = "stack.json"
PREFIX = "SERIN_"
ADDRESSES = frozenset(
    ("gateway_url", "kube_url", "mlflow_url", "prefect_url", "prometheus_url", "exporter_url")
)
"""Fields that a running stack's file fills."""


class Settings(BaseModel):
    """Every setting that comes from the environment. Variables are SERIN_<FIELD>.

    Empty URLs mean "not known": no stack runs and no address was given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default=Path(".serin"), description="folder of all state")
    service: str = Field(default="assistant", pattern=r"^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$")
    namespace: str = "default"
    port_gateway: int = Field(default=8800, ge=0, le=65535)
    port_control: int = Field(default=8801, ge=0, le=65535)
    port_mlflow: int = Field(default=8802, ge=0, le=65535)
    port_prefect: int = Field(default=8803, ge=0, le=65535)
    port_prometheus: int = Field(default=8804, ge=0, le=65535)
    port_exporter: int = Field(default=8805, ge=0, le=65535)
    gateway_url: str = ""
    kube_url: str = ""
    mlflow_url: str = ""
    prefect_url: str = ""
    prometheus_url: str = ""
    exporter_url: str = ""
    ledger_url: str = ""
    lake_uri: str = ""
    approvers_file: Path = Field(
        default=Path("approvers.yaml"), description="who may approve releases; below the home"
    )
    requested_by: str = Field(
        default="", description="the person for whom releases are started; may not approve them"
    )
    cache_password: SecretStr = Field(
        default=SecretStr(""), description="password of the Redis that keeps the gateway's answers"
    )
    predictor_token: SecretStr = Field(
        default=SecretStr(""), description="token that predictors ask for; empty: the home's own"
    )
    gateway_keys: str = Field(
        default="", description="API keys beside keys.yaml: NAME=SHA256 pairs, by spaces"
    )
    price_input_tokens: float = Field(
        default=0.0, ge=0, description="price of a million tokens of prompts, in your currency"
    )
    price_output_tokens: float = Field(
        default=0.0, ge=0, description="price of a million generated tokens"
    )
    probe_key: SecretStr = Field(
        default=SecretStr(""), description="API key that labelled probes are asked with"
    )
    engine: str = "openvino"
    backup_uri: str = Field(
        default="", description="where backups and the ledger's copy go: a folder or s3://..."
    )
    allow_faults: bool = False

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the environment (os.environ by default) and the running stack's addresses.

        Raises ConfigurationError naming the variable that is wrong.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {
            name: environ[PREFIX + name.upper()]
            for name in cls.model_fields
            if environ.get(PREFIX + name.upper())
        }
        home = Path(values.get("home", cls.model_fields["home"].default)).absolute()
        values = {**_stack_addresses(home), **values, "home": home}
        values.setdefault("ledger_url", f"sqlite:///{home / 'ledger.db'}")
        values.setdefault("lake_uri", str(home / "lake"))
        values["approvers_file"] = home / values.get("approvers_file", "approvers.yaml")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise ConfigurationError(f"{name}: {first['msg']}") from error

    @property
    def prices(self) -> dict[str, float]:
        """Prices of a million tokens by direction; empty where none is configured."""
        found = {"input": self.price_input_tokens, "output": self.price_output_tokens}
        return found if any(found.values()) else {}

    def folder(self, name: str) -> Path:
        """Return (and make) a folder below the home: bundles, snapshots, reports, control, ..."""
        path = self.home / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def _stack_addresses(home: Path) -> dict[str, str]:
    path = home / STACK_FILE
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"{path} is malformed; run `serin down` and `serin up`") from error
    addresses = content.get("addresses", {})
    return {name: str(url) for name, url in addresses.items() if name in ADDRESSES}

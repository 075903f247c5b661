"""A story: what each day of a run should come to, its faults and its shortened release profile.

Data only; `serin run` tells it, the rooms know nothing of it.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError


class Fault(BaseModel):
    """A fault that the canary's predictor shows from its first share of live traffic on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_seconds: float = Field(0.0, ge=0, description="added to each answer")
    delay_share: float = Field(1.0, ge=0, le=1, description="share of the answers delayed")
    error_share: float = Field(0.0, ge=0, le=1, description="share of the requests that fail")
    crash: bool = Field(False, description="the process exits")


class DayPlan(BaseModel):
    """How one day should end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ends: str = Field(description="name of the final state")
    improves: bool = Field(False, description="quality must rise against stable")
    fault: Fault | None = Field(None, description="injected into the day's canary")


class Story(BaseModel):
    """A whole run: settings are merged over the flow's defaults, `days` are the expectations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    rps: float = Field(10.0, gt=0, description="live requests per second")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    days: dict[str, DayPlan] = Field(default_factory=dict)

    @property
    def has_faults(self) -> bool:
        """Whether predictors must be allowed to show faults."""
        return any(day.fault for day in self.days.values())


def read_story(path: Path) -> Story:
    """Read a story file; ConfigurationError names the field that is wrong."""
    try:
        return Story.model_validate(yaml.safe_load(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no story at {path}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {where}: {first['msg']}") from error

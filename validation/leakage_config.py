"""The leakage gate's configuration, apart from its arrays: every flow's form imports it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LEAKAGE = "leakage"


class LeakageConfig(BaseModel):
    """What counts as a repetition, and what happens to training rows that repeat evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["remove", "block"] = Field(
        default="remove",
        description="remove: leaked rows are left out of training; block: the gate fails",
    )
    similarity_min: float = Field(
        default=0.85,
        ge=0.6,
        le=1,
        description="Jaccard similarity of character shingles from which prompts are the same",
    )
    shingle_characters: int = Field(default=3, ge=2, le=9, description="length of a shingle")
    leak_share_max: float = Field(
        default=0.001, ge=0, le=1, description="share of evaluation rows leaked (policy block)"
    )
    removed_share_max: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of training rows that may be removed before the gate fails",
    )

"""How a user's data is read, checked, split and judged: the frozen configuration of this room."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privacy.operators import OperatorName
from privacy.pii import TYPES
from privacy.token_labels import TokenLabelsConfig


class FieldMapping(BaseModel):
    """Which columns of the user's files mean what. Chat rows (`messages`) need no mapping."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(default="prompt", min_length=1, description="column of the user's text")
    response: str = Field(
        default="response", min_length=1, description="column of the wanted answer"
    )
    messages: str = Field(
        default="messages",
        min_length=1,
        description="column of chat turns; its last assistant turn is the wanted answer",
    )
    slice_name: str | None = Field(
        default=None,
        description="column naming the part of the traffic; default: `slice` where there is one",
    )
    id: str | None = Field(
        default=None,
        description="column of the record id; default: `id` where there is one, else the content",
    )
    created_at: str | None = Field(
        default=None,
        description="column of the time (ISO 8601); default: `created_at` where there is one",
    )
    language: str | None = Field(
        default=None,
        description="column of the language; default: `language`, else told by the script",
    )


class EvaluationConfig(BaseModel):
    """On what a candidate is judged, and when a new slice may vouch for itself.

    Label agreement measured with the defaults: new slices of CLINC150 0.79-0.97, of the sample
    0.96-0.99; with 30 % of the labels shuffled 0.48, with 50 % 0.23, the sample's bad day 0.15.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(default="", description="evaluation file (path or URL); empty: none")
    rows_max: int = Field(
        default=2000, ge=1, description="most rows judged, drawn evenly over the slices"
    )
    known_slices_only: bool = Field(
        default=True,
        description="leave out rows of the evaluation file whose slice no training data has yet",
    )
    own_rows_min: int = Field(
        default=5, ge=1, description="fewest held-out rows for which a new slice is judged at all"
    )
    neighbours: int = Field(default=5, ge=1, description="nearest prompts compared with each row")
    similarity_min: float = Field(
        default=0.35, gt=0, le=1, description="prompts less alike than this are no neighbours"
    )
    consistency_min: float = Field(
        default=0.65,
        ge=0,
        le=1,
        description="lowest share of neighbours with the same label for a new slice to count",
    )
    free_text_similarity_min: float = Field(
        default=0.5, gt=0, le=1, description="the same as similarity_min, for free-text answers"
    )
    free_text_consistency_min: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="lowest share of neighbours whose free-text answers are alike (chance: 0.05)",
    )
    pairs_min: int = Field(
        default=30, ge=1, description="fewer neighbour pairs than this: consistency is unknown"
    )
    rows_checked_max: int = Field(
        default=4000, ge=2, description="most rows of a day compared for consistency"
    )
    seed: int = Field(default=7, description="seed of every draw of this step")


class DuplicatesConfig(BaseModel):
    """Which rows count as duplicates of earlier ones, and how far back.

    Equal content is always a duplicate. Near duplicates are told by the Jaccard similarity of the
    row's character shingles; short rows, where one word makes the difference, are left alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    near: bool = Field(default=True, description="drop near duplicates, not only equal content")
    similarity_min: float = Field(
        default=0.8,
        ge=0.75,
        le=1,
        description="Jaccard similarity of shingles from which long rows are near duplicates",
    )
    near_bytes_min: int = Field(
        default=240,
        ge=90,
        description="fewest bytes of letters (a Chinese character has 3) for near matching",
    )
    label_characters_max: int = Field(
        default=60,
        ge=0,
        description="answers no longer than this are labels: rows with another label stay apart",
    )
    near_window_documents: int = Field(
        default=20_000_000, ge=1000, description="newest long rows that near matching looks at"
    )
    exact_window_documents: int = Field(
        default=1_000_000_000, ge=1000, description="newest rows that exact matching looks at"
    )


class ScaleConfig(BaseModel):
    """Where a day file's parts are taken in. One part on the local runner: this process, streamed.

    Parts are stretches of JSON lines or row groups of Parquet; other files are one part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runner: Literal["local", "dask", "ray"] = Field(
        default="local", description="Prefect's task runner that works on the parts"
    )
    parts: int = Field(default=1, ge=1, le=100_000, description="parts that a file is cut into")
    workers: int = Field(
        default=2, ge=1, le=1024, description="workers that are started where `address` is empty"
    )
    address: str = Field(
        default="", description="running Dask scheduler or Ray cluster; empty: start one here"
    )
    scratch: str = Field(
        default="",
        description="folder that all workers see, for what parts hand on; empty: in the lake",
    )

    @property
    def spread(self) -> bool:
        """Whether files are cut into parts at all."""
        return self.runner != "local" or self.parts > 1


class SelectionConfig(BaseModel):
    """How much of the new data is trained on, and which rows. Without `rows_max`: all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_max: int | None = Field(
        default=None, ge=1, description="budget: most training rows of a snapshot; empty: all"
    )
    quality_min: float = Field(
        default=0.3, ge=0, le=1, description="rows with a lower quality score are left out"
    )
    cluster_similarity_min: float = Field(
        default=0.6,
        ge=0.5,
        le=1,
        description="similarity from which rows are one cluster; its best row is chosen first",
    )
    cluster_rows_max: int | None = Field(
        default=None, ge=1, description="most rows of one cluster; empty: while there is room"
    )
    slice_rows_min: int = Field(
        default=100, ge=0, description="rows that each slice gets first, if it has them"
    )
    slice_shares: dict[str, float] = Field(
        default_factory=dict, description="weight of named slices; others weigh their share"
    )
    seed: int = Field(default=7, description="seed of the draw")


class SensitiveConfig(BaseModel):
    """What takes the place of sensitive data before a row is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: OperatorName = Field(
        default="replace",
        description="redact: [REDACTED]; replace: its kind; pseudonym or hash: its kind and a tag "
        "that equal values share; drop: the row goes to quarantine",
    )
    by_type: dict[str, OperatorName] = Field(
        default={}, description="another operator for a type, such as {PERSON: pseudonym}"
    )
    key_file: Path | None = Field(
        default=None,
        description="file, readable by its owner only, with the pseudonyms' key and the hash's "
        "salt; made when it is not there",
    )
    model: TokenLabelsConfig | None = Field(
        default=None,
        description="token-classification model in a local folder that finds more names and "
        "addresses; costs far more time than everything else",
    )

    @model_validator(mode="after")
    def _pseudonyms_have_a_key(self) -> Self:
        if self.key_file is None and "pseudonym" in (self.operator, *self.by_type.values()):
            raise ValueError("pseudonyms need a key: name its file as key_file")
        return self

    @model_validator(mode="after")
    def _types_are_known(self) -> Self:
        if unknown := sorted(self.by_type.keys() - set(TYPES)):
            raise ValueError(f"{unknown} are no types; there are {sorted(TYPES)}")
        return self


class IngestConfig(BaseModel):
    """Where the days are and how they come in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = Field(
        description="folder of daily files (path or an object store's URL), or one file"
    )
    pattern: str = Field(default="*", description="glob that names of daily files must match")
    mapping: FieldMapping = Field(default=FieldMapping(), description="meaning of the columns")
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="on what candidates are judged"
    )
    duplicates: DuplicatesConfig = Field(
        default=DuplicatesConfig(), description="which rows count as duplicates"
    )
    scale: ScaleConfig = Field(
        default=ScaleConfig(), description="how the work is spread over a cluster"
    )
    held_out_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of rows never trained on, by hash of their id"
    )
    rows_min: int = Field(
        default=50, ge=1, description="fewer new training rows end the run as not enough data"
    )
    selection: SelectionConfig = Field(
        default=SelectionConfig(), description="which of the new rows are trained on"
    )
    scrub: bool = Field(
        default=True, description="let nothing sensitive be stored, as `sensitive` says"
    )
    sensitive: SensitiveConfig = Field(
        default=SensitiveConfig(), description="what takes the place of sensitive data"
    )
    tokenizer: str = Field(
        default="",
        description="count tokens with this tokenizer.json (or its folder); `base`: with stable's, "
        "once there is one; empty: not at all",
    )
    tokens_stored: bool = Field(
        default=False,
        description="also store each row's token ids; needs a tokenizer",
    )
    batch_rows: int = Field(default=5000, ge=1, description="most rows prepared at once")
    batch_bytes_max: int = Field(
        default=4 << 20, ge=1 << 16, description="most bytes of raw rows prepared at once"
    )
    row_bytes_max: int = Field(
        default=1 << 20, ge=1024, description="longer rows go to quarantine unread"
    )
    commit_bytes: int = Field(
        default=512 << 20,
        ge=1 << 16,
        description="raw bytes after which what came in is committed: a kill costs at most as much",
    )
    processes: int = Field(
        default=1, ge=1, le=256, description="processes that prepare the rows of a large file"
    )

    @property
    def stores_tokens(self) -> bool:
        """Whether token ids are stored; not where `base` has no tokenizer yet."""
        return self.tokens_stored and bool(self.tokenizer)

    @model_validator(mode="after")
    def _stored_tokens_have_a_tokenizer(self) -> Self:
        if self.tokens_stored and not self.tokenizer:
            raise ValueError("token ids need a tokenizer: name one as tokenizer")
        return self

"""The safety policy: one YAML file, validated, named by its digest. Knows no filter's code."""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.digests import digest_json
from core.errors import ConfigurationError
from serving.safety.decisions import Action, Direction

POLICY_NAME = "policy.yaml"
POLICY_BYTES_MAX = 1 << 20
SHIPPED_POLICY = Path(__file__).resolve().parent / "policies" / "default.yaml"
OnError = Literal["block", "allow"]
BlockOrAllow = Literal["block", "allow"]
Both: tuple[Direction, ...] = ("input", "output")


class Part(BaseModel):
    """What every part of the policy shares."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FilterPart(Part):
    """What every filter's part shares."""

    enabled: bool = Field(default=True, description="whether the filter looks at texts")
    on_error: OnError = Field(
        default="block", description="what a text gets when the filter fails or takes too long"
    )


class LexiconPolicy(FilterPart):
    """Listed words and phrases."""

    categories: dict[str, BlockOrAllow] = Field(
        default={}, description="action by the lists' categories; not named: allowed"
    )
    terms: dict[str, tuple[str, ...]] = Field(
        default={}, description="further terms by category; * at an end lets the word go on"
    )
    allowed_terms: tuple[str, ...] = Field(
        default=(), description="terms that are no offence here, as the lists write them"
    )


class ToxicityPolicy(FilterPart):
    """The embedded model."""

    threshold: float = Field(default=0.7, gt=0, le=1, description="score from which texts block")
    model: str = Field(default="", description="folder of another model; empty: the shipped one")


class InjectionPolicy(FilterPart):
    """Attempts to overrule the instructions."""

    threshold: float = Field(default=0.7, gt=0, le=1, description="score from which texts block")


class PersonalDataPolicy(FilterPart):
    """Personal data, in input and output."""

    types: dict[str, Action] = Field(
        default={}, description="action by type of privacy/pii.py; not named: allowed"
    )
    score_min: float = Field(default=0.5, ge=0, le=1, description="findings below are ignored")


class SecretsPolicy(FilterPart):
    """Keys and tokens in what the model says."""

    action: Action = Field(default="block", description="what an answer with a secret gets")


class SystemPromptPolicy(FilterPart):
    """Answers that repeat the system prompt."""

    characters_min: int = Field(
        default=40, ge=16, description="letters and digits in a row that make a leak"
    )


class RulePolicy(Part):
    """A pattern with an action."""

    name: str = Field(min_length=1, description="name in decisions and reports")
    pattern: str = Field(min_length=1, description="regular expression, upper or lower case")
    action: Action = Field(default="block", description="what a text that matches gets")
    category: str = Field(default="rule", description="category of the decision")
    directions: tuple[Direction, ...] = Field(default=Both, description="where the rule applies")
    replacement: str = Field(default="[REDACTED]", description="what a redaction leaves")


class TopicPolicy(Part):
    """Words that stand for a topic."""

    name: str = Field(min_length=1, description="name in decisions and reports")
    terms: tuple[str, ...] = Field(min_length=1, description="words; * at an end: may go on")
    action: BlockOrAllow = Field(default="block", description="what a text on the topic gets")
    directions: tuple[Direction, ...] = Field(default=Both, description="where it applies")


class RulesPolicy(FilterPart):
    """The policy's own patterns and topics."""

    patterns: tuple[RulePolicy, ...] = Field(default=(), description="patterns, in order")
    topics: tuple[TopicPolicy, ...] = Field(default=(), description="topics, in order")


class GuardPolicy(FilterPart):
    """A model that judges texts: runs in a thread of its own, for a limited time."""

    name: str = Field(min_length=1, description="name in decisions and reports")
    kind: Literal["llama_guard", "qwen3_guard", "classifier"] = Field(
        description="what the model answers with"
    )
    path: str = Field(min_length=1, description="folder of the model; nothing is downloaded")
    directions: tuple[Direction, ...] = Field(default=Both, description="where it applies")
    timeout_seconds: float = Field(default=2.0, gt=0, description="longest time for one text")
    threshold: float = Field(
        default=0.7, gt=0, le=1, description="classifier: probability from which texts block"
    )
    labels: tuple[str, ...] = Field(
        default=(), description="classifier: labels that block; llama_guard: S codes; empty: all"
    )
    block_controversial: bool = Field(
        default=False, description="qwen3_guard: whether Controversial blocks as Unsafe does"
    )


class StreamPolicy(Part):
    """How much of an answer is held back while it is checked."""

    hold_characters: int = Field(
        default=64, ge=8, le=4096, description="text that stays back until more has come"
    )
    sentence_characters_max: int = Field(
        default=200, ge=16, description="a longer sentence leaves in parts, checked all the same"
    )
    context_characters: int = Field(
        default=256, ge=0, description="text that has left and is checked again with what follows"
    )


class AuditPolicy(Part):
    """What the audit keeps beside decisions and digests."""

    keep_text: bool = Field(
        default=False,
        description="whether prompts and answers are kept, personal data replaced by its type",
    )


class Policy(Part):
    """Everything that the safety chain obeys."""

    name: str = Field(min_length=1, description="name of the policy, for people")
    version: Literal[1] = Field(default=1, description="form of this file")
    lexicon: LexiconPolicy = Field(default=LexiconPolicy(), description="words and phrases")
    toxicity: ToxicityPolicy = Field(default=ToxicityPolicy(), description="embedded model")
    injection: InjectionPolicy = Field(default=InjectionPolicy(), description="injections")
    personal_data: PersonalDataPolicy = Field(
        default=PersonalDataPolicy(), description="personal data"
    )
    secrets: SecretsPolicy = Field(default=SecretsPolicy(), description="secrets in answers")
    system_prompt: SystemPromptPolicy = Field(
        default=SystemPromptPolicy(), description="system prompts in answers"
    )
    rules: RulesPolicy = Field(default=RulesPolicy(), description="own patterns and topics")
    guards: tuple[GuardPolicy, ...] = Field(default=(), description="models that judge texts")
    stream: StreamPolicy = Field(default=StreamPolicy(), description="streaming")
    audit: AuditPolicy = Field(default=AuditPolicy(), description="what the audit keeps")

    @model_validator(mode="after")
    def _types_and_names(self) -> "Policy":
        from privacy.pii import TYPES

        unknown = sorted(set(self.personal_data.types) - set(TYPES))
        if unknown:
            raise ValueError(f"unknown types of personal data {unknown}; known: {', '.join(TYPES)}")
        names = [item.name for item in self.rules.patterns]
        names += [item.name for item in self.rules.topics]
        names += [item.name for item in self.guards]
        if len(set(names)) < len(names):
            raise ValueError("rules, topics and guards need names of their own")
        return self

    @cached_property
    def digest(self) -> str:
        """The policy's identity: SHA-256 of its canonical JSON; comments do not count."""
        return digest_json(self.model_dump(mode="json"))


def parse_policy(text: str, source: str) -> Policy:
    """Return a validated policy. Raises ConfigurationError saying where and what is wrong."""
    if len(text) > POLICY_BYTES_MAX:
        raise ConfigurationError(f"{source} is larger than {POLICY_BYTES_MAX} bytes")
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigurationError(f"{source} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source} must hold one mapping; see `serin policy show`")
    try:
        return Policy(**values)
    except (ValidationError, TypeError) as error:
        raise ConfigurationError(f"{source}: {_first(error)}") from error


def read_policy(file: Path) -> Policy:
    """Read and validate a policy file. Raises ConfigurationError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the policy {file} cannot be read: {error}") from error
    return parse_policy(text, str(file))


def policy_yaml(policy: Policy) -> str:
    """Return a policy with every value written out."""
    values: Any = msgspec.json.decode(policy.model_dump_json())
    return str(yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=100))


def _first(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'policy'}: {item['msg']}"
        for item in error.errors()[:5]
    )

"""From a decoded row to a clean one: shape, normalise, scrub personal data, digest, split.

Knows nothing of files or tables; what a valid row is, the record contract decides.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from core.contracts import Message
from core.digests import digest_bytes, digest_json
from lake.config import FieldMapping
from lake.sensitive import CONTROL, DROPPED, ReplacePersonal

SLICE_DEFAULT = "all"
EPOCH_SECONDS_MIN, EPOCH_MILLISECONDS_MIN = 1e8, 1e11
RECORD_ID_LENGTH = 32
HASH_BYTES = 8
CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
KANA = re.compile(r"[\u3040-\u30ff]")
HANGUL = re.compile(r"[\uac00-\ud7af]+")
CYRILLIC = re.compile(r"[\u0400-\u04ff]+")


class ShapedRow(msgspec.Struct, frozen=True):
    """A row in the lake's form, not yet checked: wrong types stand as they came.

    `checked` is what the record contract sees; `turns` is None where it cannot be used.
    """

    checked: dict[str, Any]
    turns: tuple[Message, ...] | None


class CleanRow(msgspec.Struct, frozen=True):
    """A checked, normalised and scrubbed row, ready to be stored."""

    record_id: str
    created_at: str
    slice_name: str
    messages: tuple[Message, ...]
    response: str
    language: str
    content_digest: str

    @property
    def dropped(self) -> bool:
        """Whether it held sensitive data for which rows are dropped: not to be stored."""
        own = (self.response, self.record_id, self.slice_name, self.language)
        return DROPPED in own or any(turn.content == DROPPED for turn in self.messages)


def shape(value: Mapping[str, Any], mapping: FieldMapping) -> ShapedRow:
    """Bring a row into the lake's form by the mapping; nothing is judged or changed here."""
    chat = value.get(mapping.messages)
    if isinstance(chat, str) and chat.lstrip().startswith("["):
        chat = _decoded(chat)
    if mapping.prompt not in value and chat is not None:
        turns, roles, response = _chat_turns(chat)
    else:
        prompt, response, roles = value.get(mapping.prompt), value.get(mapping.response), "user"
        turns = (Message("user", prompt),) if isinstance(prompt, str) else None
        if turns is None:
            chat = prompt
    record_id = value.get(mapping.id or "id")
    if isinstance(record_id, int) and not isinstance(record_id, bool):
        record_id = str(record_id)
    if record_id is None and mapping.id is None:
        record_id = digest_json([str(turns), str(response)])[:RECORD_ID_LENGTH]
    slice_name = value.get(mapping.slice_name or "slice")
    if mapping.slice_name is None and slice_name is None:
        slice_name = SLICE_DEFAULT
    language = value.get(mapping.language or "language")
    checked = {
        "record_id": record_id,
        "created_at": _time(value.get(mapping.created_at or "created_at")),
        "slice_name": slice_name,
        "roles": roles,
        "prompt": turns[-1].content if turns else chat,
        "response": response,
    }
    checked["language"] = _language(language, checked["prompt"])
    return ShapedRow(checked, turns)


def clean(rows: Sequence[ShapedRow], personal: ReplacePersonal) -> list[CleanRow]:
    """Normalise rows that passed the contract and replace their personal data.

    `personal` replaces it in texts, as `lake.sensitive.replacement` returns it.
    """
    turns = iter(personal([normalise(turn.content) for row in rows for turn in row.turns or ()]))
    responses = personal([normalise(row.checked["response"]) for row in rows])
    slices = _cleaned_once([row.checked["slice_name"] for row in rows], personal)
    languages = _cleaned_once([row.checked["language"] for row in rows], personal)
    record_ids = [normalise(row.checked["record_id"]) for row in rows]
    hidden = personal(record_ids)
    cleaned = []
    for index, row in enumerate(rows):
        messages = tuple([Message(turn.role, next(turns)) for turn in row.turns or ()])
        record_id, response = record_ids[index], responses[index]
        if hidden[index] == DROPPED:
            record_id = DROPPED
        elif hidden[index] != record_id:
            record_id = hashlib.sha256(record_id.encode()).hexdigest()[:RECORD_ID_LENGTH]
        cleaned.append(
            CleanRow(
                record_id=record_id,
                created_at=str(row.checked["created_at"] or ""),
                slice_name=slices[index],
                messages=messages,
                response=response,
                language=languages[index],
                content_digest=content_digest(messages, response),
            )
        )
    return cleaned


def content_digest(messages: Sequence[Message], response: str) -> str:
    """Return the digest by which equal contents are one: SHA-256 of the turns and the answer."""
    texts = [[turn.role, turn.content] for turn in messages]
    # The same bytes as core.digests.canonical_json for texts, several times as fast.
    return digest_bytes(msgspec.json.encode([texts, response]))


def _cleaned_once(texts: Sequence[str], personal: ReplacePersonal) -> list[str]:
    """Normalise texts of which many are the same and replace their personal data."""
    distinct = list(dict.fromkeys(texts))
    replaced = personal([normalise(text) for text in distinct])
    found = dict(zip(distinct, replaced, strict=True))
    return [found[text] for text in texts]


def normalise(text: str) -> str:
    """Return the text in Unicode NFC, without control characters and outer white space."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = CONTROL.sub("", text)
    return text.strip().strip("\ufeff")


def language_of(text: str) -> str:
    """Tell the language by the script: zh, ja, ko, ru, else en (any Latin script)."""
    if text.isascii():
        return "en"
    counts = {"zh": _count(CJK, text)}
    if counts["zh"] * 2 < len(text):
        counts |= {"ko": _count(HANGUL, text), "ru": _count(CYRILLIC, text)}
    # A Chinese word says as much as several Latin letters, so a quarter of the text is enough.
    best = max(counts, key=lambda name: counts[name])
    if counts[best] * 4 < len(text):
        return "en"
    return "ja" if best == "zh" and KANA.search(text) else best


def _count(runs: re.Pattern[str], text: str) -> int:
    return sum(map(len, runs.findall(text)))


def held_out(record_id: str, share: float) -> bool:
    """Tell whether a record is held out: a pure function of its id, so for ever the same."""
    head = hashlib.sha256(record_id.encode()).digest()[:HASH_BYTES]
    return int.from_bytes(head) < share * (1 << (8 * HASH_BYTES))


def _language(given: Any, prompt: Any) -> str:
    if isinstance(given, str) and given:
        return given
    return language_of(prompt) if isinstance(prompt, str) else ""


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text


def _chat_turns(chat: Any) -> tuple[tuple[Message, ...] | None, str, Any]:
    """Return the turns before the answer, all roles joined by commas, and the answer."""
    if not isinstance(chat, list) or not all(isinstance(turn, dict) for turn in chat):
        return None, "malformed", None
    roles = ",".join(str(turn.get("role")) for turn in chat)
    contents = [_content(turn.get("content")) for turn in chat]
    if not roles.endswith("assistant"):
        return None, roles, None
    texts = [content for content in contents[:-1] if isinstance(content, str)]
    if len(texts) < len(contents) - 1 or not texts:
        return None, roles, contents[-1]
    turns = tuple(Message(turn["role"], text) for turn, text in zip(chat, texts, strict=False))
    return turns, roles.removesuffix(",assistant"), contents[-1]


def _content(content: Any) -> Any:
    """Join the text parts of an OpenAI-style content list; leave everything else."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
        return "\n".join(str(text) for text in texts)
    return content


def _time(value: Any) -> Any:
    """Bring times that Parquet or epoch numbers carry into ISO 8601; leave everything else."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value / 1000 if value >= EPOCH_MILLISECONDS_MIN else value
        if EPOCH_SECONDS_MIN <= seconds < EPOCH_MILLISECONDS_MIN:
            return datetime.fromtimestamp(seconds, UTC).isoformat()
    return value

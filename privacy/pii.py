"""Finds and replaces sensitive data in texts: the one scanner of lake, safety chain and commands.

Knows how matches become spans of the original text; what each type looks like, its detectors know.
"""

import functools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from privacy import credentials, documents, emails, names, networks, payments, phones, places
from privacy.detectors import Detector
from privacy.folding import CodePage, fold
from privacy.operators import Operator, replace

DETECTORS: tuple[Detector, ...] = (
    *emails.DETECTORS,
    *phones.DETECTORS,
    *payments.DETECTORS,
    *networks.DETECTORS,
    *credentials.DETECTORS,
    *documents.DETECTORS,
    *names.DETECTORS,
    *places.DETECTORS,
)
TYPES: tuple[str, ...] = tuple(dict.fromkeys(detector.type for detector in DETECTORS))
JOINED_CHARACTERS_MAX = 1 << 20
"""Texts of one bulk pass are joined up to this size; a longer text is a pass of its own."""
SEPARATOR = "\0"


@dataclass(frozen=True, slots=True)
class Span:
    """Sensitive data in a text: characters start..end (end excluded) of the original."""

    type: str
    start: int
    end: int
    score: float


class PiiConfig(BaseModel):
    """What is looked for. The defaults find every type with its checks passed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    types: tuple[str, ...] = Field(
        default=(), description="entity types to find, in Presidio's names; empty: all"
    )
    score_min: float = Field(
        default=0.5, ge=0, le=1, description="findings less certain than this are dropped"
    )


EVERYTHING = PiiConfig()


class Recogniser(Protocol):
    """Finds spans by other means than patterns, such as a token-classification model."""

    def recognise(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return each text's spans, in characters of the text; they may overlap."""
        ...


class Scanner:
    """Finds sensitive data. For use from one thread: it owns its working memory.

    `recognisers` add their spans to those of the patterns; on overlap the more certain span wins,
    then the longer one.
    """

    def __init__(
        self, config: PiiConfig = EVERYTHING, recognisers: Iterable[Recogniser] = ()
    ) -> None:
        import hyperscan

        unknown = set(config.types) - set(TYPES)
        recognisers = tuple(recognisers)
        if unknown and not recognisers:
            raise ValueError(f"unknown types {sorted(unknown)}; known are {', '.join(TYPES)}")
        self._config = config
        self._recognisers = recognisers
        self._engine = _engine(frozenset(config.types))
        self._scratch = hyperscan.Scratch(self._engine.database)

    def scan(self, text: str) -> list[Span]:
        """Return the spans of one text, sorted and without overlaps."""
        return self.scan_many([text])[0]

    def scan_many(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return each text's spans; in bulk this is several times faster than text by text."""
        # ASCII texts by themselves: they need no folding, and patterns run faster on them.
        order = sorted(range(len(texts)), key=lambda index: texts[index].isascii())
        found: list[list[Span]] = [[] for _ in texts]
        place = 0
        for group in _groups([texts[index] for index in order]):
            for offset, spans in self._scan_group(group):
                found[order[place + offset]] = spans
            place += len(group)
        for recogniser in self._recognisers:
            for spans, more in zip(found, recogniser.recognise(texts), strict=True):
                spans += (span for span in more if self._wanted(span))
        return [_without_overlaps(spans) if spans else spans for spans in found]

    def redact(self, text: str, operator: Operator = replace) -> tuple[str, list[Span]]:
        """Return the text with every span replaced, and the spans of the original.

        `operator(type, value)` gives the replacement; None drops the whole text, which is then "".
        """
        spans = self.scan(text)
        return redacted(text, spans, operator), spans

    def _scan_group(self, texts: Sequence[str]) -> Iterable[tuple[int, list[Span]]]:
        """Return the places of texts in which something was found, and what it is."""
        joined = SEPARATOR.join(texts)
        folded = fold(joined, self._engine.page)
        hits: list[tuple[int, int]] = []
        self._engine.database.scan(
            folded.buffer,
            match_event_handler=lambda found, start, end, flags, kept: hits.append((found, end)),
            scratch=self._scratch,
        )
        if not hits:
            return ()
        found: dict[int, list[Span]] = {}
        starts = list(accumulate((len(text) + 1 for text in texts[:-1]), initial=0))
        origin = folded.places
        inner = starts if origin is None else np.searchsorted(origin, starts).tolist()
        for detector, first, last in self._windows(hits, inner, len(folded.text)):
            if detector.needs and not detector.needs.search(folded.text, first, last):
                continue
            for match in detector.pattern.finditer(folded.text, first, last):
                accepted = detector.check(match)
                if accepted is None or accepted[2] < self._config.score_min:
                    continue
                start, end, score = accepted
                if origin is not None:
                    start, end = int(origin[start]), int(origin[end - 1]) + 1
                index = bisect_right(starts, start) - 1
                offset = starts[index]
                span = Span(detector.type, start - offset, end - offset, score)
                found.setdefault(index, []).append(span)
        return found.items()

    def _windows(
        self, hits: list[tuple[int, int]], starts: list[int], length: int
    ) -> Iterator[tuple[Detector, int, int]]:
        """Yield where each awakened detector looks: merged windows that stay within one text."""
        ends: dict[int, list[int]] = {}
        for trigger, end in hits:
            ends.setdefault(self._engine.detector_of[trigger], []).append(end)
        for index, hit_ends in ends.items():
            detector = self._engine.detectors[index]
            first = last = base = limit = -1
            for place in sorted(hit_ends):
                if place > limit:
                    if first >= 0:
                        yield detector, first, last
                    text = bisect_right(starts, place - 1) - 1
                    base = starts[text]
                    limit = starts[text + 1] - 1 if text + 1 < len(starts) else length
                    first = -1
                low = place - detector.before
                if first >= 0 and low > last:
                    yield detector, first, last
                    first = -1
                if first < 0:
                    first = low if low > base else base
                last = place + detector.after
                if last > limit:
                    last = limit
            yield detector, first, last

    def _wanted(self, span: Span) -> bool:
        types = self._config.types
        return span.score >= self._config.score_min and (not types or span.type in types)


def redacted(text: str, spans: Sequence[Span], operator: Operator = replace) -> str:
    """Return the text with the given spans (sorted, not overlapping) replaced."""
    pieces, end = [], 0
    for span in spans:
        value = operator(span.type, text[span.start : span.end])
        if value is None:
            return ""
        pieces += [text[end : span.start], value]
        end = span.end
    return "".join([*pieces, text[end:]]) if pieces else text


@dataclass(frozen=True, slots=True)
class _Engine:
    """The detectors of a choice of types, compiled once for all scanners of the process."""

    detectors: tuple[Detector, ...]
    detector_of: tuple[int, ...]
    page: CodePage
    database: Any


@functools.lru_cache(maxsize=16)
def _engine(types: frozenset[str]) -> _Engine:
    import hyperscan

    detectors = tuple(item for item in DETECTORS if not types or item.type in types)
    triggers = [(index, text) for index, item in enumerate(detectors) for text in item.triggers]
    page = CodePage("".join(text for _, text in triggers))
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    if triggers:
        database.compile(
            expressions=[page.pattern(text) for _, text in triggers],
            ids=list(range(len(triggers))),
            elements=len(triggers),
            flags=[hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_DOTALL] * len(triggers),
        )
    return _Engine(detectors, tuple(index for index, _ in triggers), page, database)


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    first, size = 0, 0
    for index, text in enumerate(texts):
        large = size + len(text) > JOINED_CHARACTERS_MAX
        if index > first and (large or text.isascii() != texts[first].isascii()):
            yield texts[first:index]
            first, size = index, 0
        size += len(text) + 1
    if first < len(texts):
        yield texts[first:]


def _without_overlaps(spans: list[Span]) -> list[Span]:
    """Keep the most certain, then the longest of spans that overlap; sort by place."""
    if len(spans) == 1:
        return spans
    kept: list[Span] = []
    starts: list[int] = []
    for span in sorted(spans, key=lambda item: (-item.score, item.start - item.end, item.start)):
        place = bisect_right(starts, span.start)
        free_before = place == 0 or kept[place - 1].end <= span.start
        if free_before and (place == len(kept) or span.end <= kept[place].start):
            kept.insert(place, span)
            starts.insert(place, span.start)
    return kept

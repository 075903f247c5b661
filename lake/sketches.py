"""From rows to sketches: 96 bits of the digest, and for long rows what near duplicates share.

Knows what of a row is compared; how texts are sketched, core/sketches.py knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

from core.sketches import Array, sketch_texts
from lake.config import DuplicatesConfig

DIGEST_HEX = 24


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What duplicates are told by: the content digest (hexadecimal), and the texts."""

    digest: str
    text: str
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Sketches:
    """The sketches of a batch. `places` are the rows long enough for near matching, rising.

    keys uint64 [rows], checks uint32 [rows]: 96 bits of the digest; bands uint64 [places, BANDS];
    signatures uint8 [places, SIGNATURE_BYTES].
    """

    keys: Array
    checks: Array
    places: Array
    bands: Array
    signatures: Array

    def __len__(self) -> int:
        return len(self.keys)


def sketch(rows: Sequence[IndexRow], config: DuplicatesConfig) -> Sketches:
    """Sketch a batch of rows; short ones get a digest key only."""
    keys, checks = digest_keys([row.digest for row in rows])
    places: list[int] = []
    texts: list[str] = []
    labels: list[str] = []
    for place, row in enumerate(rows if config.near else ()):
        label = len(row.answer) <= config.label_characters_max
        text = row.text if label else f"{row.text}\n{row.answer}"
        if len(text) * (1 if text.isascii() else 3) >= config.near_bytes_min:
            places.append(place)
            texts.append(text)
            labels.append(row.answer if label else "")
    found = sketch_texts(texts)
    # Rows with different labels share no band key, so they are never compared.
    label_keys = {label: _label_key(label) for label in set(labels)}
    bands = found.bands ^ np.array([label_keys[label] for label in labels], np.uint64)[:, None]
    enough = found.sizes >= config.near_bytes_min
    return Sketches(
        keys,
        checks,
        np.array(places, dtype=np.int64)[enough],
        bands[enough],
        found.signatures[enough],
    )


def digest_keys(digests: Sequence[str]) -> tuple[Array, Array]:
    """Return the first 64 and the next 32 bits of hexadecimal digests."""
    raw = bytes.fromhex("".join(digest[:DIGEST_HEX] for digest in digests))
    table = np.frombuffer(raw, dtype=np.dtype([("key", ">u8"), ("check", ">u4")]))
    return table["key"].astype(np.uint64), table["check"].astype(np.uint32)


def _label_key(label: str) -> int:
    return xxh3_64_intdigest(" ".join(label.lower().split()).encode()) if label else 0

"""From texts to sketches: band keys, and a small signature that estimates Jaccard similarity.

One permutation hashing (Li, Owen, Zhang 2012) over character shingles, a batch at a time; for each
text 12 keys and 128 bytes. Knows nothing of rows, and of where sketches are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
BINS = 256
"""Bins of the signature. The estimate of a Jaccard of 0.8 has a standard error of 0.03 at most."""
COARSE_BINS = 64
BANDS, BAND_ROWS = 12, 5
"""A pair of Jaccard s shares a band with probability 1 - (1 - s^5)^12: 0.992 at 0.8."""
SIGNATURE_BYTES = BINS // 2
CHANCE = (2 * 2 + 14) / 256
"""How often two different minima have one code: 4 bits, of which 0 says that the bin is empty."""
WIDTH, WIDTH_ASIAN = 5, 3
"""A shingle: 5 letters, or 3 from a Chinese, Japanese or Korean one (each says more)."""
CHUNK_ROWS = 32
"""So many texts' arrays stay in a core's cache: up to three times as fast as 256."""
EMPTY = np.uint32(0xFFFFFFFF)
FACTOR, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
PLANE_LAST = 0xFFFF
ASIAN = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF))
LOWER = bytes(range(256)).lower()
NO_LETTERS = bytes(code for code in range(1, 128) if not chr(code).isalnum())
ZERO_NIBBLES = np.array([(not n & 15) + (not n >> 4) for n in range(256)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class TextSketches:
    """One row per text: bands uint64 [n, BANDS], signatures uint8 [n, SIGNATURE_BYTES], and sizes.

    A size is the bytes of a text's letters in UTF-8.
    """

    bands: Array
    signatures: Array
    sizes: Array


def sketch_texts(
    texts: Sequence[str], width: int = WIDTH, width_asian: int = WIDTH_ASIAN
) -> TextSketches:
    """Sketch texts: equal letters and digits, whatever their case, give equal sketches.

    A shingle has `width` letters, or `width_asian` (no more than `width`) from an Asian one on.
    """
    # ASCII texts by themselves: all others need four bytes a letter.
    order = sorted(range(len(texts)), key=lambda index: texts[index].isascii())
    parts = [
        _sketch_few(
            [texts[index] for index in order[start : start + CHUNK_ROWS]], width, width_asian
        )
        for start in range(0, len(texts), CHUNK_ROWS)
    ]
    if not parts:
        none = np.empty((0, BANDS), np.uint64), np.empty((0, SIGNATURE_BYTES), np.uint8)
        return TextSketches(*none, np.empty(0, np.int64))
    back = np.argsort(np.array(order))
    return TextSketches(*(np.concatenate(part)[back] for part in zip(*parts, strict=True)))


def similarity(ours: Array, theirs: Array) -> Array:
    """Estimate the Jaccard similarity of pairs of signatures, row by row."""
    both_empty = _zero_nibbles(ours | theirs)
    equal = _zero_nibbles(ours ^ theirs) - both_empty
    both_full = BINS - _zero_nibbles(ours) - _zero_nibbles(theirs) + both_empty
    matches = (equal - both_full * CHANCE) / (1 - CHANCE)
    estimate: Array = matches / np.maximum(BINS - both_empty, 1)
    return estimate


def is_asian(letter: str) -> bool:
    """Tell whether a letter is Chinese, Japanese or Korean."""
    return any(first <= ord(letter) <= last for first, last in ASIAN)


def _zero_nibbles(packed: Array) -> Array:
    counts: Array = ZERO_NIBBLES[packed].sum(axis=1, dtype=np.int64)
    return counts


def _sketch_few(texts: Sequence[str], width: int, width_asian: int) -> tuple[Array, Array, Array]:
    """Return band keys, signatures and the bytes of letters of a few texts."""
    hashes, owners, sizes = _shingle_hashes(texts, width, width_asian)
    minima = np.full(len(texts) * BINS, EMPTY, dtype=np.uint32)
    bins = owners + (hashes >> np.uint64(56)).view(np.int64)
    np.minimum.at(minima, bins, (hashes >> np.uint64(24)).astype(np.uint32))
    table = minima.reshape(len(texts), BINS)
    codes = np.maximum(table.astype(np.uint8) & 15, 1)
    codes[table == EMPTY] = 0
    signatures = codes[:, ::2] | (codes[:, 1::2] << 4)
    first, second, third, fourth = (table[:, start::4] for start in range(BINS // COARSE_BINS))
    coarse = np.minimum(np.minimum(first, second), np.minimum(third, fourth))
    return _band_keys(_filled(coarse)), signatures, sizes


def _shingle_hashes(
    texts: Sequence[str], width: int, width_asian: int
) -> tuple[Array, Array, Array]:
    """Return each shingle's hash, the first bin of the text that it is of, and the texts' sizes."""
    joined = "\0".join([*texts, ""])
    if joined.isascii():
        codes: Array = np.frombuffer(joined.encode().translate(LOWER, NO_LETTERS), dtype=np.uint8)
    else:
        raw = np.frombuffer(joined.lower().encode("utf-32-le", "replace"), dtype=np.uint32)
        codes = raw[_letters()[np.minimum(raw, PLANE_LAST)]]
    ends = np.flatnonzero(codes == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts
    count = len(codes)
    wide = np.concatenate([codes, np.zeros(width, dtype=codes.dtype)]).astype(np.uint64)
    hashes = short = wide[:count]
    for shift in range(1, width):
        if shift == width_asian and codes.dtype != np.uint8:
            short = hashes
        hashes = np.multiply(hashes, FACTOR, out=None if hashes is short else hashes)
        hashes += wide[shift : shift + count]
    owners = np.repeat(np.arange(len(texts), dtype=np.int64) * BINS, sizes + 1)
    valid = _within(ends, width, count)
    if codes.dtype != np.uint8:
        if width_asian < width:
            asian = _asian(codes)
            hashes = np.where(asian, short, hashes)
            valid = np.where(asian, _within(ends, width_asian, count), valid)
        weights = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800)
        sums = np.concatenate([[0], np.cumsum(weights)])
        sizes = sums[ends] - sums[starts]
    hashes *= MIX
    hashes ^= hashes >> np.uint64(32)
    hashes *= MIX
    return hashes[valid], owners[valid], sizes


def _within(ends: Array, width: int, count: int) -> Array:
    """Tell for each place whether a shingle of `width` letters from there stays in its text."""
    valid = np.ones(count, dtype=bool)
    outside = (ends[:, None] - np.arange(width)).ravel()
    valid[outside[outside >= 0]] = False
    return valid


def _asian(codes: Array) -> Array:
    found = np.zeros(len(codes), dtype=bool)
    for first, last in ASIAN:
        found |= (codes >= first) & (codes <= last)
    return found


def _filled(table: Array) -> Array:
    """Give each empty bin the value of the next full one, so that short texts have all bands.

    Densification by rotation (Shrivastava, Li 2014): the distance is mixed into the value.
    """
    rows, bins = table.shape
    full = table != EMPTY
    if full.all():
        return table
    twice = np.concatenate([full, full], axis=1)
    places = np.where(twice, np.arange(2 * bins), 2 * bins)
    following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :bins]
    distance = np.where(following < 2 * bins, following - np.arange(bins), 0)
    values = np.take_along_axis(table, following % bins, axis=1)
    mixed: Array = values + distance.astype(np.uint32) * np.uint32(0x9E3779B1)
    return mixed


def _band_keys(table: Array) -> Array:
    used = table[:, : BANDS * BAND_ROWS].astype(np.uint64).reshape(len(table), BANDS, BAND_ROWS)
    keys = np.arange(1, BANDS + 1, dtype=np.uint64) * MIX + np.zeros((len(table), 1), np.uint64)
    for row in range(BAND_ROWS):
        keys = (keys ^ used[:, :, row]) * FACTOR
        keys ^= keys >> np.uint64(29)
    keys *= MIX
    mixed: Array = keys ^ (keys >> np.uint64(32))
    return mixed


@cache
def _letters() -> Array:
    """Which code points count: letters, digits, the separator of texts, and all of other planes."""
    table = np.fromiter((chr(code).isalnum() for code in range(PLANE_LAST + 1)), dtype=bool)
    table[[0, PLANE_LAST]] = True
    return table

"""Immutable sorted arrays on disk: written once, mapped for reading, merged in bounded memory.

Knows keys and the columns beside them; what a key means and when to merge, duplicates.py decides.
"""

import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from core.errors import IntegrityError
from core.sketches import Array

KEYS, FILTER = "keys", "filter"
FILTER_BITS_MIN = 8
"""Bits of the filter per key, at least (a power of two in all): it lets 1 in 8 unknown keys by."""
KEY_LOW = (1 << 28) - 1
"""The bits of a key that a merge may change; the others order it."""
MERGE_KEYS_MAX = 1 << 19
WRITE_ROWS = 1 << 16


Shape = tuple[str, int, int]
"""A column's dtype, values per row, and rows."""
Change = Callable[[int, dict[str, Array]], dict[str, Array]]
"""(which part, a piece of it) -> the piece as it goes on."""


class Segment:
    """A folder of raw arrays: sorted uint64 `keys`, their `filter`, and columns by name.

    Raises IntegrityError when a file is missing or of another length than was written.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape]) -> None:
        self.folder = folder
        self._maps: list[mmap.mmap] = []
        self._arrays = {name: self._map(name, *shape) for name, shape in shapes.items()}
        self._filter = self._arrays[FILTER]

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    @property
    def keys(self) -> Array:
        """The sorted keys."""
        return self._arrays[KEYS]

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(len(one) for one in self._maps)

    def columns(self, *names: str) -> dict[str, Array]:
        """Return some columns by name."""
        return {name: self._arrays[name] for name in names}

    def find(self, low: Array, high: Array, most: int) -> tuple[Array, Array]:
        """Find the keys within [low, high] (rising): pairs of a query's and a key's place.

        At most `most` keys for each query, so a key that stands everywhere costs no more.
        """
        places, masks = _filter_places(low, 8 * len(self._filter))
        asked = np.flatnonzero(self._filter[places] & masks)
        first = np.searchsorted(self.keys, low[asked], side="left")
        last = np.searchsorted(self.keys, high[asked], side="right")
        counts = np.minimum(last - first, most)
        starts = np.repeat(first - np.cumsum(counts) + counts, counts)
        return np.repeat(asked, counts), starts + np.arange(len(starts))

    def read(self, name: str, places: Array) -> Array:
        """Read scattered rows of a column from its file: mapping them would map what is around."""
        column = self._arrays[name]
        size = column.strides[0]
        handle = os.open(self.folder / name, os.O_RDONLY)
        try:
            found = b"".join(os.pread(handle, size, size * place) for place in places.tolist())
        finally:
            os.close(handle)
        return np.frombuffer(found, dtype=column.dtype).reshape(len(places), -1)

    def release(self) -> None:
        """Give the mapped pages back to the kernel; it keeps them cached while it has room."""
        for one in self._maps:
            one.madvise(mmap.MADV_DONTNEED)

    def _map(self, name: str, dtype: str, width: int, rows: int) -> Array:
        path = self.folder / name
        size = rows * width * np.dtype(dtype).itemsize
        found = path.stat().st_size if path.exists() else -1
        if found != size:
            raise IntegrityError(f"{path} has {found} bytes instead of {size}; build it again")
        shape = (rows,) if width == 1 else (rows, width)
        if not size:
            return np.empty(shape, dtype=dtype)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Reading around each lookup would map, and load, sixteen pages for one.
        mapped.madvise(mmap.MADV_RANDOM)
        self._maps.append(mapped)
        return np.frombuffer(mapped, dtype=dtype).reshape(shape)


def write_segment(
    folder: Path,
    keys_most: int,
    sorted_parts: Iterable[Mapping[str, Array]],
    rest: Mapping[str, Iterable[Array]],
) -> dict[str, Shape]:
    """Write a segment as a whole and return its shapes: a kill leaves a folder no manifest names.

    `sorted_parts` are consecutive pieces of `keys` and the columns in their order; `rest` holds
    other columns, each in pieces. Every column has one piece at least, which may be empty.
    """
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    bits = 1 << max(6, (keys_most * FILTER_BITS_MIN - 1).bit_length())
    shapes: dict[str, Shape] = {FILTER: ("|u1", 1, bits // 8)}
    marks = np.memmap(scratch / FILTER, dtype=np.uint8, mode="w+", shape=(bits // 8,))
    for part in sorted_parts:
        places, masks = _filter_places(part[KEYS], bits)
        np.bitwise_or.at(marks, places, masks)
        for name, values in part.items():
            _append(scratch / name, values, shapes)
    for name, pieces in rest.items():
        for values in pieces:
            _append(scratch / name, values, shapes)
    marks.flush()
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(scratch, folder)
    return shapes


def sync_segment(folder: Path) -> None:
    """Force a segment's files to the disk."""
    for path in (*folder.iterdir(), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def merged(parts: Sequence[Mapping[str, Array]], change: Change) -> Iterator[dict[str, Array]]:
    """Merge sorted parts (`keys` and columns beside them) piece by piece, keys rising.

    `change` sees each piece of each part first; it may drop rows and alter KEY_LOW bits of keys.
    Keys are hashes, so equal ranges of them hold about equal numbers: bounded memory.
    """
    pieces = max(1, -(-sum(len(part[KEYS]) for part in parts) // MERGE_KEYS_MAX))
    begins = [0] * len(parts)
    for piece in range(1, pieces + 1):
        bound = np.uint64(((piece << 64) // pieces - 1) | KEY_LOW)
        ends = [int(np.searchsorted(part[KEYS], bound, side="right")) for part in parts]
        cut = [
            change(index, {name: part[name][begins[index] : ends[index]] for name in part})
            for index, part in enumerate(parts)
        ]
        whole = {name: np.concatenate([part[name] for part in cut]) for name in cut[0]}
        if len(whole) == 1:
            whole[KEYS].sort()
            yield whole
        else:
            order = np.argsort(whole[KEYS])
            yield {name: values[order] for name, values in whole.items()}
        begins = ends


def _filter_places(keys: Array, bits: int) -> tuple[Array, Array]:
    """Return the byte and the bit in it that stand for each key: its first bits, so they rise."""
    places = keys >> np.uint64(65 - bits.bit_length())
    masks = np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))
    return (places >> np.uint64(3)).astype(np.int64), masks


def _append(path: Path, values: Array, shapes: dict[str, Shape]) -> None:
    with path.open("ab") as file:
        for start in range(0, len(values), WRITE_ROWS):
            file.write(np.ascontiguousarray(values[start : start + WRITE_ROWS]).data)
    width = values.shape[1] if values.ndim > 1 else 1
    rows = shapes[path.name][2] if path.name in shapes else 0
    shapes[path.name] = (values.dtype.str, width, rows + len(values))

"""A split's items in an Arrow file that is mapped into memory, so that a data set may be larger than the memory.

An entry is a directory: `items.arrow`, in the order of the rows, in batches as they were encoded; and `about.json`,
with the digest of that file and what was counted while it was written. It appears under its name only once it is whole.
"""

import hashlib
import json
import mmap
import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from lorakit.data.items import Encoded, Item, Summarised, Summary, Tally
from lorakit.runtime import atomic_directory, disk_errors, make_directory
from lorakit.seal import sealed, unsealed

if TYPE_CHECKING:
    import pyarrow as pa

ITEMS = "items.arrow"
ABOUT = "about.json"
KEPT_DAYS = 30
"""Entries that nobody has used for so long are removed when another is written."""


class StoredItems(Summarised):
    """The items of an Arrow file, each read when it is asked for.

    Args:
        batches: The file's.
        largest: See `Summary`.
        digest: See `Summary`.
    """

    def __init__(self, batches: Sequence["pa.RecordBatch"], largest: int, digest: str) -> None:
        self._parts = [_Part(batch) for batch in batches]
        self._ends = np.cumsum([len(part.rows) for part in self._parts]).tolist()
        lengths, targets, last = (_joined(batches, name) for name in ("length", "targets", "last"))
        self.summary = Summary(lengths, targets, last, largest, digest)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # negative ones, and the IndexError that ends a loop
        which = bisect_right(self._ends, index)
        return self._parts[which].item(index - (self._ends[which - 1] if which else 0))


class _Part:
    """One batch, as arrays that lie in the mapped file; what is taken out is copied, since torch wants to write."""

    def __init__(self, batch: "pa.RecordBatch") -> None:
        self.rows = _numbers(batch.column("row"))
        self._starts = _numbers(batch.column("input_ids").offsets)
        self._ids = _numbers(batch.column("input_ids").values)
        names = batch.schema.names
        self._types = _numbers(batch.column("token_type_ids").values) if "token_type_ids" in names else None
        self._labels = _numbers(batch.column("labels").values) if "labels" in names else None
        self._values = None if self._labels is not None else _numbers(batch.column("value"))
        self._whole = None if self._labels is not None else _numbers(batch.column("whole"))

    def item(self, index: int) -> Item:
        place = slice(self._starts[index], self._starts[index + 1])
        types = None if self._types is None else self._types[place].astype(np.int32)
        return Item(self._ids[place].copy(), self._of(index, place), types, int(self.rows[index]))

    def _of(self, index: int, place: slice) -> NDArray[Any]:
        if self._labels is not None:
            return np.asarray(self._labels[place], dtype=np.int64)
        assert self._values is not None and self._whole is not None
        value = float(self._values[index])
        return np.asarray(int(value) if self._whole[index] else value)


def _joined(batches: Sequence["pa.RecordBatch"], name: str) -> NDArray[np.int64]:
    return np.concatenate([_numbers(batch.column(name)) for batch in batches])


@contextmanager
def one_at_a_time(entry: Path) -> Iterator[None]:
    """Wait until no other process makes the same entry: it will be there then.

    Raises:
        LorakitError: The cache may not be written.
    """
    lock = entry.with_suffix(".lock")
    with disk_errors(lock):
        make_directory(lock.parent)
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with suppress(ImportError, OSError):  # without locks all make it, and the first one's stays
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def write_entry(final: Path, chunks: Iterator[list[Item]], about: dict[str, Any]) -> None:
    """Write items as they come.

    Args:
        final: The entry's directory, which must not be there.
        chunks: The items; at least one, all of them with token types or none.
        about: Written beside them; may still change while the chunks come.

    Raises:
        LorakitError: The disk is full or may not be written, or another process has made the entry meanwhile.
    """
    import pyarrow as pa

    with atomic_directory(final) as beside:
        tally, first = Tally(), next(chunks)
        batch = _batch(first)
        with pa.OSFile(str(beside / ITEMS), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
            tally.add(first)
            for chunk in chunks:
                writer.write_batch(_batch(chunk))
                tally.add(chunk)
        found = tally.summary()
        counted = {"items": len(found.lengths), "largest": found.largest, "content": found.digest}
        written = {**about, **counted, "file": _file_digest(beside / ITEMS)}
        (beside / ABOUT).write_text(json.dumps(sealed(written), indent=1))


def _batch(items: Sequence[Item]) -> "pa.RecordBatch":
    import pyarrow as pa

    lengths = np.array([len(item.input_ids) for item in items], dtype=np.int64)
    offsets = _column(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))

    def lists(rows: Iterable[NDArray[Any]], kind: type[np.signedinteger[Any]]) -> "pa.Array":
        return pa.ListArray.from_arrays(offsets, _column(np.concatenate(list(rows)).astype(kind)))

    tally = Tally()
    tally.add(items)
    found = tally.summary()
    columns = {
        "row": _column(np.array([item.row for item in items], dtype=np.int64)),
        "length": _column(lengths),
        "targets": _column(found.targets),
        "last": _column(found.last),
        "input_ids": lists((item.input_ids for item in items), np.int32),
    }
    if items[0].token_type_ids is not None:
        types = (item.token_type_ids for item in items)
        columns["token_type_ids"] = lists((one for one in types if one is not None), np.int8)
    if items[0].labels.ndim:
        columns["labels"] = lists((item.labels for item in items), np.int32)
    else:
        columns["value"] = _column(np.array([float(item.labels) for item in items]))
        columns["whole"] = _column(np.array([item.labels.dtype.kind == "i" for item in items]))
    return pa.record_batch(columns)


# Arrow's own conversions import pandas to ask whether it has a say: 37 MB and half a second.


def _column(values: NDArray[Any]) -> "pa.Array":
    """An Arrow array of one of numpy's."""
    import pyarrow as pa

    if values.dtype == np.bool_:
        bits = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _numbers(column: "pa.Array") -> NDArray[Any]:
    """A numpy array of one of Arrow's, which has no nulls; it lies where that does, but for truth values."""
    import pyarrow as pa

    buffer, place = column.buffers()[-1], slice(column.offset, column.offset + len(column))
    if pa.types.is_boolean(column.type):
        return np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")[place].astype(np.bool_)
    return np.frombuffer(buffer, column.type.to_pandas_dtype())[place]


def read_entry(directory: Path) -> Encoded | None:
    """A split that was written before; None if it is not there, or not as it was written."""
    import pyarrow as pa

    try:
        about = unsealed(json.loads((directory / ABOUT).read_text()))
        if _file_digest(directory / ITEMS) != about["file"]:
            return None
        with (directory / ITEMS).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        items = StoredItems(batches, about["largest"], about["content"])
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)  # what the summary has touched is not this process's memory
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    with suppress(OSError):  # a cache that may only be read
        os.utime(directory)
    return Encoded(items, about["truncated"], about["dropped"])


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remove_unused(directory: Path) -> None:
    """Remove the entries of a cache that nobody has used for `KEPT_DAYS`; what has one open can go on reading it."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for entry in directory.iterdir() if directory.is_dir() else ():
        try:
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True)
        except OSError:  # another process has removed it
            continue

"""Reading and writing safetensors files piece by piece: no tensor need be whole in memory.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data.
"""

import errno
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from lorakit.errors import CheckpointError

FINGERPRINT_BYTES = 65536
ELEMENT_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
"""Of an element of safetensors' dtypes, by their names; rarer ones are smaller than a byte."""
_HEADER_LIMIT = 100 * 2**20  # safetensors' own
_STEP, _KEPT = 32 * 2**20, 256 * 2**20
"""Bytes of a growing file that are sent to the disk at once, and that are left to get there."""
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}
"""What kernels and file systems answer that do not copy between two files; a full disk is none of these."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file.

    Args:
        file: The file that holds it.
        dtype: safetensors' name, e.g. "F32", "BF16".
        shape: Of the tensor.
        start: First byte in the file.
        stop: One past the last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        """Bytes of the tensor, `count` of them from `start` on."""
        span = self.span(start, count)
        with self.file.open("rb") as file:  # buffered: the kernel gives 2 GiB at once at most
            file.seek(span.start)
            return file.read(len(span))

    def read_into(self, place: memoryview, start: int) -> None:
        """Fill writable bytes with those of the tensor from `start` on, without another copy in between."""
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start + start)
            while place:
                count = file.readinto(place)
                if not count:
                    raise CheckpointError(f"{self.file}: has become shorter while it was read")
                place = place[count:]

    def span(self, start: int = 0, count: int | None = None) -> "Span":
        """Where these bytes stand: `count` of the tensor's from `start` on, and never past its end."""
        stop = self.stop if count is None else min(self.stop, self.start + start + count)
        return Span(self.file, self.start + start, stop)


@dataclass(frozen=True)
class Span:
    """Bytes of a file, from `start` to before `stop`."""

    file: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


Chunk: TypeAlias = bytes | memoryview | Span
"""A part of a stream: bytes, or where such stand in another file."""


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, checked against the file's size.

    Raises:
        CheckpointError: The file is missing, truncated or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(_HEADER_LIMIT, size - 8):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(handle.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(file, 8 + length, value) for name, value in header.items()}
        end = _check_layout(entries.values(), 8 + length)
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is no text")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file: {error}") from error
    if end != size:
        raise CheckpointError(f"{file}: truncated or damaged: {size} bytes, its header describes {end}")
    return entries, metadata


def _entry(file: Path, base: int, value: dict[str, Any]) -> Entry:
    start, stop = value["data_offsets"]
    dtype, shape = value["dtype"], tuple(value["shape"])
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (start, stop, *shape)):
        raise ValueError("it describes an impossible tensor")
    if dtype in ELEMENT_BYTES and stop - start != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise ValueError("the bytes of a tensor do not fit its shape")
    return Entry(file, dtype, shape, base + start, base + stop)


def _check_layout(entries: Iterable[Entry], start: int) -> int:
    """Where the last tensor ends; tensors must follow one another without gap or overlap."""
    end = start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end or entry.stop < entry.start:
            raise ValueError("its tensors overlap or leave gaps")
        end = entry.stop
    return end


def model_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order: one, or the shards that its index names.

    Raises:
        CheckpointError: There are none, or a shard is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            strangers = [name for name in names if Path(name).name != name]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not a weight index: {error}") from error
        if not names:
            raise CheckpointError(f"{index}: not a weight index: it names no files")
        if strangers:  # transformers would follow them
            raise CheckpointError(f"{index}: not a weight index: {strangers[0]!r} is no file beside it")
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    missing = [f"{file}: no such file" for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(*missing)
    return files


def model_entries(directory: Path) -> dict[str, Entry]:
    """Every tensor of a model directory, over all its shards."""
    return {name: entry for file in model_files(directory) for name, entry in read_header(file)[0].items()}


def fingerprint(entries: dict[str, Entry], names: Iterable[str]) -> str:
    """A hash of the first 64 KB of each of the named tensors: cheap, and another base almost surely differs there."""
    digest = hashlib.sha256()
    for name in sorted(names):
        entry = entries[name]
        digest.update(f"{name}\x1f{entry.dtype}\x1f{entry.shape}\x1f".encode())
        digest.update(entry.read(count=FINGERPRINT_BYTES))
    return digest.hexdigest()


def write_file(
    file: Path, layout: dict[str, tuple[str, tuple[int, ...], int]], chunks: Iterator[Chunk], metadata: dict[str, str]
) -> None:
    """Write a safetensors file from a stream of bytes.

    Args:
        file: Where to.
        layout: Name → (safetensors dtype, shape, bytes), in the order of the stream.
        chunks: The tensors' bytes one after the other, in pieces of any size; those of other files are copied by the
            kernel, where it can.
        metadata: Of the file; sorted, so that equal content gives equal bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, (dtype, shape, size) in layout.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as safetensors asks
    written = 0
    with ExitStack() as stack:
        target = stack.enter_context(file.open("wb", buffering=0))
        sources: dict[Path, BinaryIO] = {}
        _write_all(target.fileno(), struct.pack("<Q", len(text)) + text)
        behind = _Behind(target.fileno())
        for chunk in chunks:
            if isinstance(chunk, Span):
                if chunk.file not in sources:
                    sources[chunk.file] = stack.enter_context(chunk.file.open("rb", buffering=0))
                _copy(sources[chunk.file].fileno(), chunk, target.fileno())
            else:
                _write_all(target.fileno(), chunk)
            written += len(chunk)
            behind.reached(written)
    assert written == offset, f"{file}: {written} bytes written, {offset} announced"


class _Behind:
    """Has the system write a growing file to the disk as it grows, and forget what is there already.

    Else the pages of a large file fill the memory, and its writer comes to wait for the disk: 4 GB on 2 cores with 24
    GiB took 8 to 10 s in the place of 1.6. What is read back later comes from the disk, as a proof should.

    Args:
        target: Open for writing.
    """

    def __init__(self, target: int) -> None:
        self._target, self._begun = target, 0

    def reached(self, size: int) -> None:
        """The file has so many bytes now."""
        while hasattr(os, "posix_fadvise") and size - self._begun >= _STEP:
            with suppress(OSError):  # a file system that has no such thing
                for start in (self._begun, self._begun - _KEPT):  # begins to write; forgets what has been written
                    if start >= 0:
                        os.posix_fadvise(self._target, start, _STEP, os.POSIX_FADV_DONTNEED)
            self._begun += _STEP


def _write_all(target: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _copy(source: int, span: Span, target: int) -> None:
    """Append a span of one open file to another."""
    place = span.start
    while place < span.stop:
        copied = _copy_in_kernel(source, place, span.stop - place, target)
        if not copied:
            data = os.pread(source, span.stop - place, place)
            if not data:
                raise CheckpointError(f"{span.file}: has become shorter while it was read")
            _write_all(target, data)
            copied = len(data)
        place += copied


def _copy_in_kernel(source: int, start: int, count: int, target: int) -> int:
    """Bytes copied without passing through this process; 0: not between these files, or not on this system."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, offset_src=start)
    except OSError as error:
        if error.errno in _CANNOT_COPY:
            return 0
        raise

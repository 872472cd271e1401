"""The machine under a run: derived seeds, versions, threads, memory, and atomic files."""

import ctypes
import hashlib
import math
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError


def derive(seed: int, *parts: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on what it is for, and on nothing that happened before.

    Args:
        seed: The recipe's seed.
        parts: What the seed is for, e.g. ("order", epoch).
    """
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def versions() -> dict[str, str]:
    """Versions of what can change a result."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
    found = {name: version(name) for name in packages}
    return {"lorakit": version("lorakit"), "python": platform.python_version(), **found}


def peak_memory_bytes() -> int:
    """The most memory used so far: of the GPU where there is one, else resident memory of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")  # on Linux getrusage begins with the memory of the process that started this one
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Give freed memory back, and let `peak_memory_bytes` begin anew; where the system cannot, it goes on counting."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_memory() -> int:
    """Bytes of this machine's memory that a new process can have."""
    table = Path("/proc/meminfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def json_ready(value: Any) -> Any:
    """The value with null for every number that JSON cannot say: an undefined metric, an infinite norm."""
    if isinstance(value, dict):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cache_directory() -> Path:
    """Where converted bases are kept: `$LORAKIT_CACHE`, else `lorakit` in the user's cache directory."""
    if given := os.environ.get("LORAKIT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorakit"


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, each of which survives a power failure once this returns."""
    missing = [path, *path.parents]
    missing = missing[: next((i for i, one in enumerate(missing) if one.is_dir()), len(missing))]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync(directory.parent)


def sync(path: Path) -> None:
    """Flush a file or directory to the disk, so that a rename after it cannot outrun its bytes."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """A directory that appears under its name only once it is complete and synced; on failure nothing is left.

    Args:
        final: Must not exist yet; its parent is made.

    Raises:
        LorakitError: The disk is full, read-only, or may not be written.
    """
    with disk_errors(final):
        make_directory(final.parent)
        beside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            yield beside
            beside.chmod(0o755)
            for path in (*beside.rglob("*"), beside):  # itself too: it holds the names
                sync(path)
            beside.rename(final)
            sync(final.parent)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def size_text(count: int) -> str:
    """Bytes as people read them: 512 B, 3.4 KiB, 86.6 MiB, 15.0 GiB."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{count} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file at once: readers see the old bytes or the new ones, never a part.

    Raises:
        LorakitError: The disk is full, read-only, or may not be written.
    """
    with disk_errors(path):
        make_directory(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        beside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                beside.chmod(0o644)
                os.fsync(file.fileno())
            beside.replace(path)
            sync(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into one line.

    Raises:
        LorakitError: Names `path`, what failed and the space left.
    """
    try:
        yield
    except OSError as error:
        raise LorakitError(f"{path}: cannot write: {error.strerror or error}{_space_left(path)}") from error


def _space_left(path: Path) -> str:
    try:
        place = next(p for p in (path, *path.parents) if p.exists())
        return f" ({shutil.disk_usage(place).free / 2**20:,.0f} MiB free there)"
    except (OSError, StopIteration):  # the disk that has refused once may refuse to say this, too
        return ""

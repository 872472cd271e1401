"""Measuring the memory that a run takes above what its imports do.

On a GPU the allocator counts. On a CPU the C library does, and is looked at as often as that costs next to nothing;
weights that are mapped from their files come on top. Resident memory says less: glibc keeps freed blocks, so that a run
may occupy twice what it uses.
"""

import ctypes
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from lorakit.kept import current
from lorakit.runtime import peak_memory_bytes

_SECONDS_BETWEEN_LOOKS = 0.005
_SHARE_OF_TIME = 1 / 200
"""That looking may take: a look walks through all free blocks with the allocator locked, and every 5 ms that slowed the
training of SmolLM2 by a quarter."""
_SMAPS = Path("/proc/self/smaps")


class _Mallinfo2(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def _mallinfo2() -> "ctypes._FuncPointer | None":
    try:
        function = ctypes.CDLL(None).mallinfo2  # glibc 2.33 and later
    except (AttributeError, OSError, TypeError):
        return None
    function.restype = _Mallinfo2
    return function


_COUNT = _mallinfo2()


def used_bytes() -> int | None:
    """Blocks that the C library has handed out to this process; None without glibc."""
    if _COUNT is None:
        return None
    found = _COUNT()
    return int(found.uordblks + found.hblkhd)


def mapped_weights_bytes() -> int:
    """The resident part of mapped safetensors files: weights that loading did not copy (code is mapped too)."""
    if not _SMAPS.is_file():
        return 0
    resident, ours = 0, False
    for line in _SMAPS.read_text().splitlines():
        if line[:1] in "0123456789abcdef":
            ours = line.endswith(".safetensors")  # the line of a mapping begins with its address
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


class Meter:
    """Watches the memory in use from `mark` to the end of its `with` block, in a thread.

    Outside of such a block, and on a GPU, whose allocator counts, no thread is started.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._most = 0
        self._stop = threading.Event()
        self._stop.set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self._stop.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def mark(self) -> None:
        """What is in use now is the imports', and what an earlier run of this process has left is not."""
        self._before, kept = used_bytes(), current()
        if kept is not None:
            self._before = kept.before = self._before if kept.before is None else kept.before
        if _on_gpu():
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif self._before is not None and not self._stop.is_set():
            self._thread.start()

    def _watch(self) -> None:
        pause = _SECONDS_BETWEEN_LOOKS
        while not self._stop.wait(pause):
            began = time.perf_counter()
            self._most = max(self._most, used_bytes() or 0)
            pause = max(_SECONDS_BETWEEN_LOOKS, (time.perf_counter() - began) / _SHARE_OF_TIME)

    def above_imports(self) -> int | None:
        """The most bytes in use since `mark`, above those of then; None where nobody counts."""
        if _on_gpu():
            return peak_memory_bytes()
        if self._before is None or not self._most:
            return None
        return max(0, self._most - self._before) + mapped_weights_bytes()


def _on_gpu() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())

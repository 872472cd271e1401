"""Peak memory of this process above what it holds at a moment: of the GPU where there is one, else resident memory."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Begins to count when it is made.

    Args:
        model: Already here: its weights are read once, since pages of mapped files are only resident from then on.
    """

    def __init__(self, model: Any = None) -> None:
        import torch

        for parameter in model.parameters() if model is not None else ():
            parameter.detach().sum()
        gc.collect()
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self._before = int(torch.cuda.memory_allocated())
            torch.cuda.reset_peak_memory_stats()
            return
        _give_back_freed()
        self._before = 0
        with suppress(OSError):  # Linux, where the system lets us
            _CLEAR.write_text("5")  # begins the peak of the resident memory anew
            self._before = _status("VmRSS")

    def bytes(self) -> int:
        """The most so far, above what there was; 0 where nobody can tell."""
        if self._on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated()) - self._before
        return max(0, _status("VmHWM") - self._before) if self._before else 0


def _give_back_freed() -> None:
    """Let the C library return what loading has freed: else training would live in it, and seem to need nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024

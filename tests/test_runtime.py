"""Derived seeds, and files that are there whole or not at all."""

import errno
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.errors import LorakitError
from lorakit.runtime import (
    atomic_directory,
    cache_directory,
    derive,
    disk_errors,
    json_ready,
    peak_memory_bytes,
    size_text,
    versions,
    write_atomic,
)


def test_derived_seeds_never_change() -> None:
    """Runs of earlier versions must resume: these values are a promise."""
    assert derive(0) == 0x5FECEB66FFC86F38 >> 1  # SHA-256 of "0"
    assert derive(0, "order", 1) == 3560704936019802908
    assert derive(0, "order", 1) == derive(0, "order", "1")


def test_derived_seeds_differ_by_seed_and_by_use() -> None:
    uses = [derive(seed, *parts) for seed in range(3) for parts in [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1)]]
    assert len(set(uses)) == len(uses)
    assert all(0 <= value < 2**63 for value in uses)


def test_versions() -> None:
    import torch

    import lorakit

    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["lorakit"] == lorakit.__version__
    assert found["python"].startswith("3.")
    assert {"transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy"} < found.keys()


def test_peak_memory_is_in_bytes_and_grows() -> None:
    before = peak_memory_bytes()
    block = bytearray(os.urandom(2**20) * 300)
    after = peak_memory_bytes()
    assert len(block) == 300 * 2**20
    assert 20 * 2**20 < before < 2**40
    assert after >= 300 * 2**20  # KiB taken for bytes would give less


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LORAKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path.home() / ".cache" / "lorakit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "lorakit"
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"


def test_write_atomic(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_atomic(file, "eins ä\n")
    assert file.read_bytes() == "eins ä\n".encode()
    write_atomic(file, b"\x00\x01")
    assert file.read_bytes() == b"\x00\x01"
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(file.parent.iterdir()) == [file]


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(LorakitError) as caught:
        write_atomic(file, "new")
    message = str(caught.value)
    assert re.fullmatch(rf"{file}: cannot write: No space left on device \([\d,]+ MiB free there\)", message)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_atomic_directory(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "step-2"
    with atomic_directory(final) as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "file").write_text("x")
        assert not final.exists()
        assert beside.parent == final.parent  # the rename must stay on one disk
    assert (final / "sub" / "file").read_text() == "x"
    assert final.stat().st_mode & 0o777 == 0o755
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_directory_leaves_nothing_on_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_directory(tmp_path / "final") as beside:
        (beside / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_atomic_directory_replaces_nothing(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "old").write_text("x")
    with pytest.raises(LorakitError, match="final: cannot write: "), atomic_directory(final) as beside:
        (beside / "new").write_text("y")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["old"]


def test_a_directory_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(LorakitError, match="No space left"), atomic_directory(tmp_path / "final") as beside:
        (beside / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LorakitError, match="file/below: cannot write"):
        write_atomic(tmp_path / "file" / "below", "x")


def test_our_own_errors_pass_disk_errors(tmp_path: Path) -> None:
    with pytest.raises(LorakitError, match="^mine$"), disk_errors(tmp_path):
        raise LorakitError("mine")


def test_json_ready_says_null_for_what_json_cannot_say() -> None:
    value = {"pearson": math.nan, "norms": [1.5, math.inf], "step": 3, "name": "x"}
    assert json_ready(value) == {"pearson": None, "norms": [1.5, None], "step": 3, "name": "x"}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**20, "3.0 MiB"), (15 * 2**30, "15.0 GiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets")
def test_the_peak_begins_anew() -> None:
    """In a process of its own: others' tests look at the peak, too."""
    code = """
from lorakit.runtime import forget_peak, peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(b"x") * (100 * 2**20)
with_block = peak_memory_bytes()
assert with_block > before + 90 * 2**20
forget_peak()
assert peak_memory_bytes() > before + 90 * 2**20, "it is in use"
del block
forget_peak()
assert peak_memory_bytes() < with_block - 90 * 2**20
"""
    subprocess.run([sys.executable, "-c", code], check=True)

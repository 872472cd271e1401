import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorakit.meter import Meter, mapped_weights_bytes, used_bytes

MEBI = 2**20

pytestmark = pytest.mark.skipif(used_bytes() is None, reason="only glibc counts")


def settle() -> None:
    """Longer than the meter waits between two looks."""
    time.sleep(0.1)


def test_it_sees_what_came_and_went() -> None:
    with Meter() as meter:
        meter.mark()
        block = torch.zeros(16 * MEBI)
        settle()
        del block
        settle()
        assert meter.above_imports() == pytest.approx(64 * MEBI, rel=0.2)


def test_what_was_there_before_does_not_count() -> None:
    before = torch.zeros(16 * MEBI)
    with Meter() as meter:
        meter.mark()
        settle()
        found = meter.above_imports()
    assert found is not None
    assert found < 8 * MEBI
    assert before.sum() == 0


def test_no_thread_outside_of_its_block() -> None:
    meter = Meter()
    meter.mark()
    settle()
    assert meter.above_imports() is None


def test_mapped_weights_count_as_far_as_they_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4 * MEBI)}, tmp_path / "model.safetensors")
    before = mapped_weights_bytes()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["a"].sum()
    assert mapped_weights_bytes() - before == pytest.approx(16 * MEBI, rel=0.1)


def test_the_thread_ends_with_the_block() -> None:
    """In a process of its own: a thread that went on would keep others' tests company."""
    code = """
import threading, time
from lorakit.meter import Meter
with Meter() as meter:
    meter.mark()
    assert threading.active_count() == 2
time.sleep(0.1)
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""How long a person waits for `lorakit --help`, and to be told that a recipe is wrong."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.pages import Results
from benchmarks.ratios import Goal, Line, measured

WRONG = """
model: {base: prajjwal1/bert-tiny}
method: {name: lora, rnak: 8}
task: {name: glue, subset: stsb}
train: {epochs: 1, batch_size: 8, lr: 1e-3}
"""


def run(rounds: int, results: Results, scratch: Path) -> None:
    """Time both, in turn; adds their lines to `results`.

    Args:
        rounds: To be counted, behind one that fills the disk's cache.
        results: Of all benchmarks.
        scratch: A folder for the wrong recipe.
    """
    recipe = scratch / "wrong.yaml"
    recipe.write_text(WRONG)
    ways = {
        "lorakit --help": (["--help"], 0, Goal(most=0.3)),
        "a recipe error": (["train", str(recipe)], 2, Goal(most=2.5)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (arguments, code, _) in ways.items():
            began = time.perf_counter()
            ran = subprocess.run(
                [sys.executable, "-m", "lorakit", *arguments], capture_output=True, text=True, check=False, cwd=scratch
            )
            passed = time.perf_counter() - began
            if ran.returncode != code:
                results.failures.append(f"{name}: exit {ran.returncode}: {ran.stderr.strip()[-300:]}")
                return
            if turn:
                seconds[name].append(passed)
    for name, (_, _, goal) in ways.items():
        results.lines.append(Line(f"start: {name}", "", measured(seconds[name]), "s", goal))

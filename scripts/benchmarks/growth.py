"""What more rows cost: time and memory of reading, tokenising and setting a training up, on a model of no size."""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.made_up import Shape, make_recipe, make_rows
from benchmarks.pages import Results
from benchmarks.ratios import Goal, Line, measured, ratio
from benchmarks.worker import Channel
from benchmarks.workers import once

SHAPE = Shape("llama", "completion", prompt=36, target=27, max_length=128)
ROWS, TINY = (10_000, 30_000, 120_000, 240_000), (20, 50, 100, 200)
"""The first are tokenised in memory, the others into a file: what grows is measured among those."""
LINEAR, FLAT = Goal(most=1.1), Goal(most=64e6)


def run(rounds: int, results: Results, scratch: Path, tiny: bool) -> None:
    """Measure; adds its lines to `results`. Each time is the first one: with an empty cache, in a new process.

    Args:
        rounds: Of each size.
        results: Of all benchmarks.
        scratch: A folder for what is made up.
        tiny: A thousandth of the rows.
    """
    recipe = make_recipe(SHAPE, 8, scratch / "growth")
    sizes = TINY if tiny else ROWS
    files = {count: make_rows(SHAPE, count, scratch / f"{count}.jsonl", 1) for count in sizes}
    told: dict[int, list[dict[str, Any]]] = {count: [] for count in sizes}
    again: list[float] = []
    for turn in range(rounds):
        for count in sizes:
            job = {"kind": "growth", "recipe": str(recipe), "overrides": [f"task.train={files[count]}"]}
            cache = {"LORAKIT_CACHE": str(scratch / f"cache-{turn}-{count}")}
            told[count].append(once(job, cache))
        again.append(once(job, cache)["seconds"] / told[count][-1]["seconds"])
    least, few, middle, most = sizes
    slopes = [
        [_per_token(b, a) for a, b in zip(told[less], told[more], strict=True)]
        for less, more in ((few, middle), (middle, most))
    ]
    more = [float(b["peak_bytes"] - a["peak_bytes"]) for a, b in zip(told[least], told[most], strict=True)]
    between = f"from {few:,} rows to {middle:,}"
    what = f"growth from {middle:,} rows to {most:,}, processor time per token"
    results.lines.append(Line(what, between, ratio(slopes[1], slopes[0]), "x", LINEAR))
    results.lines.append(
        Line(f"growth, {most:,} rows, more peak memory", f"{least:,} rows", measured(more), "MB", FLAT)
    )
    results.lines.append(Line(f"growth, {most:,} rows, time of a second set-up", "the first", measured(again)))
    seconds = ", ".join(
        f"{count:,} rows {measured([one['seconds'] for one in told[count]]).middle:.1f} s" for count in sizes
    )
    results.notes.append(f"growth: reading, tokenising and setting up takes {seconds}")


def _per_token(many: dict[str, Any], few: dict[str, Any]) -> float:
    """Processor seconds of each further token, of all threads: others' work beside this one does not count."""
    seconds = float(many["cpu_seconds"] - few["cpu_seconds"])
    return max(seconds, 1e-9) / int(many["tokens"] - few["tokens"])  # of a few rows, less than the noise


def work(job: dict[str, Any], channel: Channel) -> None:
    """Answers `seconds` and `cpu_seconds` of a set-up, its `tokens`, and `peak_bytes` above the imports."""
    from transformers.models.llama import modeling_llama  # noqa: F401

    from benchmarks.memory import Peak
    from lorakit.progress import Silent
    from lorakit.recipe import load
    from lorakit.training.setup import set_up

    recipe = load(Path(job["recipe"]), job["overrides"])
    with tempfile.TemporaryDirectory() as scratch:
        peak = Peak()
        began, spent = time.perf_counter(), time.process_time()
        run = set_up(recipe, Path(scratch) / "run", Silent())
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - spent}
        channel.send(**took, tokens=int(run.train.encoded.lengths.sum()), peak_bytes=peak.bytes())

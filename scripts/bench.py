"""Every speed and memory goal of lorakit, measured beside what people use instead, in one interleaved run.

    python scripts/bench.py                      # all that this machine can run
    python scripts/bench.py e2e stsb overhead --rounds 5 --steps 4 --json bench.json --markdown bench.md
    make bench                                   # the short one for a CPU

Training workloads (e2e, samsum, wikisql, stsb, mrpc, …): lorakit's own loop and PEFT with transformers' Trainer, each
in a process of its own, take turns of a few steps with the same rows, rates and initial tensors. Speed is real tokens
per second, padding not counted; a ratio is the median over the rounds of the ratio in a round. Where the losses are not
the same the speed means nothing: FAILED is printed, and the exit code is 1. Unmet goals do not change it.

The others: overhead (of adapters over the frozen model), generation, merge, start, growth.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import training
from benchmarks.pages import Results, as_json, curve_rows, goal_rows, hardware_line, machine, markdown
from benchmarks.workloads import WORKLOADS, Workload

Benchmark = Callable[[Results], None]


def benchmarks(given: argparse.Namespace, scratch: Path) -> dict[str, Benchmark]:
    """Name → what adds its numbers to the results."""

    def train(workload: Workload) -> Benchmark:
        return lambda results: training.run(workload, given.rounds, given.steps, results, scratch, given.tiny)

    return {workload.name: train(workload) for workload in WORKLOADS}


def run(given: argparse.Namespace, results: Results) -> None:
    """The benchmarks that were named, or all; says which cannot run here."""
    from torch.cuda import is_available

    reasons = {workload.name: workload.skipped(is_available(), given.tiny) for workload in WORKLOADS}
    for name in given.names or [*reasons]:
        if reason := reasons.get(name):
            print(f"{name}: skipped: {reason}", flush=True)
            continue
        print(f"{name} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="lorakit-bench-") as scratch:
            benchmarks(given, Path(scratch))[name](results)


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in plain text."""
    from lorakit.report import table

    if rows:
        print("\n" + table(list(header), [tuple(row) for row in rows]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where results differ that must be the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--steps", type=int, default=4, help="of a contender in each round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--tiny", action="store_true", help="made-up models of no size: to try the script itself")
    given = parser.parse_args(arguments)
    results = Results(machine())
    run(given, results)
    print("\n" + hardware_line(results.machine))
    show(*goal_rows(results.lines))
    show(*curve_rows(results.curves))
    for text in [*results.notes, *(f"FAILED: {text}" for text in results.failures)]:
        print(text)
    if given.json:
        given.json.write_text(as_json(results))
    if given.markdown:
        given.markdown.write_text(markdown(results))
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())

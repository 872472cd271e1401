"""Every speed and memory goal of lorakit, measured beside what people use instead, in one interleaved run.

    python scripts/bench.py                      # all that this machine can run
    python scripts/bench.py e2e stsb overhead --rounds 5 --steps 4 --json bench.json --markdown bench.md
    make bench                                   # the short one for a CPU

Training workloads (e2e, samsum, wikisql, stsb, mrpc, …): lorakit's own loop and PEFT with transformers' Trainer, each
in a process of its own, take turns of a few steps with the same rows, rates and initial tensors. So do torchtune,
litgpt and, on a GPU, Unsloth, where they are installed and the model is a Llama; who is left out is told with the
reason, and `--contenders peft,litgpt` takes those alone. Unsloth's part has never run. Speed is real tokens per
second, padding not counted; a ratio is the median over the rounds of the ratio in a round. Where the losses are not
the same, the speed means nothing: FAILED is printed, and the exit code is 1. Unmet goals do not change it.

The others: overhead (of adapters over the frozen model), generation, merge, start, growth.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks import generation, growth, merging, overhead, starting, training
from benchmarks.contenders import CONTENDERS
from benchmarks.pages import Results, as_json, curve_rows, goal_rows, hardware_line, machine, markdown
from benchmarks.workers import WorkerFailed
from benchmarks.workloads import WORKLOADS

Benchmark = Callable[[Results], None]
LONG = 3
"""Rounds, at most, of what takes minutes in each."""
OTHERS = ("overhead", "generation", "merge", "start", "growth")


def benchmarks(given: argparse.Namespace, scratch: Path, on_gpu: bool) -> dict[str, Benchmark]:
    """Name → what adds its numbers to the results; only those that this machine can run."""
    here = {w.name: replace(w, against=given.contenders) for w in WORKLOADS if w.skipped(on_gpu, given.tiny) is None}
    rounds, tiny = given.rounds, given.tiny
    found: dict[str, Benchmark] = {}
    for name, workload in here.items():
        found[name] = partial(training.run, workload, rounds, given.steps, scratch=scratch, tiny=tiny)
    models = [here[name] for name in ("e2e", "stsb", "roberta-large", "gpt2-medium") if name in here]

    def adapters(results: Results) -> None:
        for workload in models[:2]:
            overhead.run(workload, rounds, given.steps, results, scratch=scratch, tiny=tiny)

    decoder = here.get("e2e") or here.get("gpt2-medium")
    if models:
        found["overhead"] = adapters
    if decoder is not None:
        prompts = 3 if tiny else given.prompts
        found["generation"] = partial(generation.run, decoder, rounds, prompts, scratch=scratch, tiny=tiny)
    model = merging.TINY if tiny else merging.shape_of(given.gigabytes)
    if find_spec("peft"):
        found["merge"] = partial(merging.run, model, min(rounds, LONG), scratch=scratch)
    found["start"] = partial(starting.run, rounds, scratch=scratch)
    found["growth"] = partial(growth.run, min(rounds, LONG), scratch=scratch, tiny=tiny)
    return found


def run(given: argparse.Namespace, results: Results) -> None:
    """The benchmarks that were named, or all; says which cannot run here."""
    on_gpu = "gpu" in results.machine
    reasons = {workload.name: workload.skipped(on_gpu, given.tiny) for workload in WORKLOADS}
    every = [*reasons, *OTHERS]
    if unknown := [name for name in given.names if name not in every]:
        raise SystemExit(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(every)}")
    for name in given.names or every:
        with tempfile.TemporaryDirectory(prefix="lorakit-bench-") as scratch:
            found = benchmarks(given, Path(scratch), on_gpu).get(name)
            if found is None:
                print(f"{name}: skipped: {reasons.get(name) or 'its model or peft is not here'}", flush=True)
                continue
            print(f"{name} …", flush=True)
            before = len(results.lines)
            try:
                found(results)
            except WorkerFailed as error:
                results.failures.append(f"{name}: {error}")
            show(*goal_rows(results.lines[before:]))
            write(given, results)  # after each: a long run that is stopped has what it did


def write(given: argparse.Namespace, results: Results) -> None:
    """The files that were asked for."""
    if given.json:
        given.json.write_text(as_json(results))
    if given.markdown:
        given.markdown.write_text(markdown(results))


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in plain text."""
    from lorakit.report import table

    if rows:
        print("\n" + table(list(header), [tuple(row) for row in rows]))


def chosen(text: str) -> tuple[str, ...]:
    """Contenders of the command line; lorakit always takes part."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise argparse.ArgumentTypeError(f"no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 where results differ that must be the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--steps", type=int, default=4, help="of a contender in each round")
    parser.add_argument("--prompts", type=int, default=16, help="of `generation`")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the model of `merge`")
    parser.add_argument(
        "--contenders", type=chosen, help=f"beside lorakit, with commas: {', '.join(list(CONTENDERS)[1:])}"
    )
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
    write(given, results)
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())

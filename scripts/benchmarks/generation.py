"""Beam search for evaluation beside transformers' own `generate` in batches of the same size, unsorted.

A base that was never trained on the task seldom ends a text; so the adapter is first trained for some steps.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.pages import Results
from benchmarks.ratios import Goal, Line, ratio
from benchmarks.worker import Channel
from benchmarks.workers import once
from benchmarks.workloads import Workload

GOAL = Goal(least=2.0)
STEPS = 60
"""Of training, after which SmolLM2 ends its texts."""


def run(workload: Workload, rounds: int, prompts: int, results: Results, scratch: Path, tiny: bool) -> None:
    """Time it; adds its line, and how many texts are equal, to `results`.

    Args:
        workload: Whose model, rows and prompts are taken.
        rounds: To be counted; the generation before them, of two prompts, is not.
        prompts: Of the validation split.
        results: Of all benchmarks.
        scratch: A folder for what is made up.
        tiny: Take the tiny shape.
    """
    steps = 2 if tiny else STEPS
    recipe, overrides = workload.make(steps, scratch / "generation", tiny)
    limit = [f"task.limit={{train: {steps * 8}, validation: {prompts * 12}}}"]  # up to 12 references of one prompt
    job: dict[str, Any] = {"kind": "generation", "recipe": str(recipe), "overrides": [*overrides, *limit]}
    told = once(job | {"rounds": rounds, "prompts": prompts, "new": 8 if tiny else 64})
    against = f"transformers, {told['size']} unsorted prompts at a time"
    speed = ratio(told["theirs"], told["ours"])
    results.lines.append(Line(f"{workload.name}, generation, 10 beams", against, speed, "x", GOAL))
    equal = f"{told['equal']} of {told['prompts']} texts are equal to transformers'"
    results.notes.append(f"{workload.name}, generation: {equal}; bfloat16 rounds differently in other batches")


def work(job: dict[str, Any], channel: Channel) -> None:
    """Answers the seconds of each round: `ours` and `theirs`; `prompts`, how many texts are `equal`, batch `size`."""
    from generation_speed import plain

    from lorakit.data.encode import end_ids, prompt_ids
    from lorakit.data.rows import distinct_prompts
    from lorakit.generate import batch_limit, generate
    from lorakit.recipe import Generate, load

    recipe = load(Path(job["recipe"]), job["overrides"])
    settings = Generate(beams=10, length_penalty=0.9, max_new_tokens=job["new"])
    with tempfile.TemporaryDirectory() as scratch:
        run = _trained(recipe, Path(scratch))
        model, tokenizer = run.prepared.model, run.prepared.tokenizer
        rows = [row for row, _ in distinct_prompts(run.validation[0].rows)][: job["prompts"]]
        prompts, ends = [prompt_ids(row, tokenizer) for row in rows], end_ids(rows[0], tokenizer)
        limit, longest = batch_limit(settings), max(map(len, prompts)) + settings.max_new_tokens
        size = max(1, min(limit.rows or len(prompts), (limit.tokens or longest) // longest))

        def ours(some: list[list[int]]) -> list[str]:
            return generate(model, tokenizer, some, settings, None, ends)

        def theirs(some: list[list[int]]) -> list[str]:
            batches = [some[i : i + size] for i in range(0, len(some), size)]
            return [text for batch in batches for text in plain(model, tokenizer, batch, settings, ends)]

        ways = {"ours": ours, "theirs": theirs}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        texts: dict[str, list[str]] = {}
        with run.subject.evaluating():
            for way in ways.values():
                way(prompts[:2])
            for turn in range(job["rounds"]):
                for name in sorted(ways, reverse=turn % 2 == 1):
                    began = time.perf_counter()
                    texts[name] = ways[name](prompts)
                    seconds[name].append(time.perf_counter() - began)
    equal = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
    channel.send(**seconds, equal=equal, prompts=len(prompts), size=size)


def _trained(recipe: Any, scratch: Path) -> Any:
    """A run after its training."""
    from lorakit.data.batches import step_rows
    from lorakit.progress import Silent
    from lorakit.training.loop import optimise
    from lorakit.training.optim import rate
    from lorakit.training.setup import set_up

    run = set_up(recipe, scratch / "run", Silent())
    train, data = run.recipe.train, run.train.encoded
    rates = [rate(train, step, 2, run.total) for step in range(run.total)]
    run.trainee.model.train()
    for _ in optimise(run.trainee, data, step_rows(train.seed, len(data), train.batch_size, run.total), train, rates):
        pass
    return run

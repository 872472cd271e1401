"""Whole runs that take a fraction of a second: a tiny base, our own made-up rows in files, the task custom."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorakit.checkpoint import Provenance, head_of, save_adapter
from lorakit.data.rows import CompletionRow, TextRow
from lorakit.model import Prepared, prepare
from lorakit.progress import Silent
from lorakit.recipe import Recipe, dump, load
from lorakit.seal import sealed
from lorakit.surgery import trainable_parameters, trainable_state
from lorakit.tasks.made_up import completion_rows, text_rows
from lorakit.training.run import train
from lorakit.training.setup import Run

FILES = {
    "adapter.safetensors",
    "metrics.jsonl",
    "plots/gradient_norm.png",
    "plots/learning_rate.png",
    "plots/loss.png",
    "plots/metric.png",
    "predictions/validation.jsonl",
    "recipe.yaml",
    "report.html",
    "report.json",
    "report.md",
}
"""What a finished run holds beside its checkpoints and its plots of predictions."""
PLOTS = {"classification": {"plots/confusion_validation.png"}, "regression": {"plots/scatter_validation.png"}}
IN_CHECKPOINT = ("adapter.safetensors", "optimizer.safetensors", "state.json")


def write_rows(file: Path, kind: str, count: int, seed: int) -> str:
    """Made-up rows of a kind (classification, regression, completion) as JSON lines; returns the file's name."""
    labels: list[Any] = [0.0, 0.5, 1.0] if kind == "regression" else [0, 1]
    rows = completion_rows(count, seed) if kind == "completion" else text_rows(count, seed, labels, pair=False)
    lines: list[dict[str, Any]] = []
    for row in rows:
        if isinstance(row, CompletionRow):
            lines.append({"prompt": row.prompt, "target": row.target})
        else:
            assert isinstance(row, TextRow)
            label = row.label if kind == "regression" else ("bad", "good")[int(row.label or 0)]
            lines.append({"text": row.text, "label": label})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def recipe_file(folder: Path, base: Path, kind: str = "classification", rows: int = 20, **sections: Any) -> Path:
    """A recipe and its data, 20 rows for training and 10 for validation; `sections` replace single keys."""
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "name": "small",
        "model": {"base": str(base)},
        "method": {"name": "lora", "rank": 2, "alpha": 4},
        "task": {
            "name": "custom",
            "kind": kind,
            "train": write_rows(folder / "train.jsonl", kind, rows, 1),
            "validation": write_rows(folder / "validation.jsonl", kind, 10, 2),
        },
        "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, "warmup": None},
    }
    if kind == "completion":
        data["generate"] = {"max_new_tokens": 4}
    for section, values in sections.items():
        data[section] = {**data.get(section, {}), **values}
        data[section] = {key: value for key, value in data[section].items() if value != "absent"}
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(data, indent=1))  # JSON is YAML
    return file


def small_recipe(folder: Path, base: Path, kind: str = "classification", rows: int = 20, **sections: Any) -> Recipe:
    """`recipe_file`, loaded."""
    return load(recipe_file(folder, base, kind, rows, **sections))


def run(recipe: Recipe, out: Path, *, resume: bool = False, overwrite: bool = False) -> Run:
    """Train in silence."""
    return train(recipe, out, Silent(), resume=resume, overwrite=overwrite)


def moved_run(folder: Path, base: Path, kind: str = "classification", seed: int = 1, **sections: Any) -> Path:
    """A run directory of an adapter whose values have all moved by N(0, 0.1²), without the training."""
    recipe = small_recipe(folder, base, kind, **sections)
    made = prepare(recipe.model, recipe.method, head_of(recipe), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(made.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    resolved = recipe.model_copy(update={"method": made.methods, "task": recipe.task.resolve()})
    out = folder / "run"
    out.mkdir()
    (out / "recipe.yaml").write_text(dump(resolved))
    save_adapter(out / "adapter.safetensors", trainable_state(made.model), Provenance.of(made))
    return out


def change_state(checkpoint: Path, **fields: Any) -> None:
    """Write other values into a checkpoint's state, as if it had been saved with them."""
    file = checkpoint / "state.json"
    state = json.loads(file.read_text()) | fields
    del state["digest"]
    file.write_text(json.dumps(sealed(state)))


def history(out: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl (of some kinds) without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "seconds"}
        for line in lines
        if not kinds or line["kind"] in kinds
    ]


def losses(out: Path) -> list[float]:
    """The training loss of every step."""
    return [line["loss"] for line in history(out, "log")]


def files(out: Path) -> set[str]:
    """Every file of a run, hidden ones too, by its path in it."""
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def expected_files(steps: Sequence[int], kind: str = "classification") -> set[str]:
    """What `files` must be for a finished run with checkpoints at these steps."""
    saved = {f"checkpoints/step-{step}/{name}" for step in steps for name in IN_CHECKPOINT}
    return FILES | PLOTS.get(kind, set()) | saved


def logits(model: Any) -> Tensor:
    """Of two rows, the second padded."""
    ids = torch.randint(10, 200, (2, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        out: Tensor = model.eval()(input_ids=ids, attention_mask=mask).logits
    return out[mask.bool()] if out.ndim == 3 else out


def prepared(recipe: Path, methods: bool) -> Prepared:
    """A recipe's model with its methods, or the bare base."""
    loaded = load(recipe)
    return prepare(loaded.model, loaded.method if methods else [], head_of(loaded), loaded.train.seed)


def same_result(one: Path, other: Path) -> None:
    """Fails unless two runs have equal adapters, histories and metrics."""
    assert history(one) == history(other)
    assert (one / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()
    for name in ("metrics", "best_step", "steps", "epochs"):
        assert report(one)[name] == report(other)[name]


def report(out: Path) -> dict[str, Any]:
    """report.json."""
    read: dict[str, Any] = json.loads((out / "report.json").read_text())
    return read

"""lorakit beside PEFT on real rows: the same loss at every step, and the same scores over seeds.

    make parity                                  # all of it, about 25 minutes on 2 cores
    python scripts/parity.py losses --tasks stsb # one part

`losses`: same initial tensors, same rows in the same order, dropout off, float32: PEFT in a plain PyTorch loop against
`lorakit train`, and against itself with the rows of each step reversed, which shows what rounding alone does.
`scores`: three seeds of MiniLM against PEFT with transformers' Trainer, each with its own order. Needs the public data
sets in ../shared/data, and the dev extra.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.peft_side import copy_initial, peft_model
from transformers import (
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
    set_seed,
)

from lorakit.checkpoint import head_of
from lorakit.data.batches import Limit, micro_batches, step_rows
from lorakit.data.collate import Batch, collate
from lorakit.data.items import IGNORE, Item
from lorakit.journal import read_history
from lorakit.model import prepare
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.report import table
from lorakit.splits import SplitData, read_split
from lorakit.training.optim import parameter_groups
from lorakit.training.run import train

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
STEPS = 200
SAME = 1e-4
"""What losses may differ by; or by what PEFT's own do, where a step's rows come in another order."""
SEEDS = (0, 1, 2)
NO_DROPOUT = "model.overrides={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
PLAIN_HEAD = "train.head_bias=zero"  # PEFT knows no other start
RECIPES = {
    "stsb": ("minilm_stsb.yaml", [f"task.path={DATA / 'glue'}"], "pearson"),
    "mrpc": ("minilm_mrpc.yaml", [f"task.path={DATA / 'glue'}"], "accuracy"),
    "e2e": ("smollm2_e2e.yaml", [f"task.path={DATA / 'e2e'}"], "bleu"),
}


def losses(task: str) -> tuple[float, float, float, float]:
    """(first loss, last loss, largest difference; PEFT's own with a step's rows reversed)."""
    file, overrides, _ = RECIPES[task]
    size = 2 if task == "e2e" else 8  # the larger model, in steps that a CPU takes in a second
    rows = size * STEPS if task == "e2e" else 3000
    fast = ["train.epochs=null", f"train.steps={STEPS}", f"train.batch_size={size}", "train.eval_limit=8"]
    fast += ["method.dropout=0.0", PLAIN_HEAD]
    fast += ["train.select=last", f"train.eval_every={STEPS}", f"task.limit={{train: {rows}, validation: 8}}"]
    fast += ["train.precision=float32", *([NO_DROPOUT] if task != "e2e" else [])]
    recipe = load(ROOT / "recipes" / file, [*overrides, *fast])
    with tempfile.TemporaryDirectory() as scratch:
        train(recipe, Path(scratch) / "run", Silent())
        ours = [line["loss"] for line in read_history(Path(scratch) / "run") if line["kind"] == "log"]
    theirs, reversed_ = peft_losses(recipe), peft_losses(recipe, backwards=True)
    apart, noise = (max(abs(a - b) for a, b in zip(theirs, other, strict=True)) for other in (ours, reversed_))
    return ours[0], ours[-1], apart, noise


def peft_losses(recipe: Recipe, backwards: bool = False) -> list[float]:
    """PEFT's model in a plain loop, transformers' own loss, on the rows that lorakit sees.

    Args:
        recipe: Of the run.
        backwards: Take a step's rows from shortest to longest: the same sums in another order, rounded otherwise.
    """
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    data = read_split(recipe.task, "train", prepared, Silent())
    model = peft_model(recipe, prepared, torch.float32)
    copy_initial(prepared, model)
    settings = recipe.train
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameter_groups(named, settings.weight_decay), lr=settings.lr, eps=1e-8)
    assert settings.warmup is not None
    warmup = (
        settings.warmup.steps if settings.warmup.steps is not None else math.ceil((settings.warmup.ratio or 0) * STEPS)
    )
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    model.train()
    found = []
    for step in step_rows(settings.seed, len(data.encoded), settings.batch_size, STEPS):
        # Longest first within the step, as lorakit computes: float32 sums depend on the order of their terms.
        (rows,) = micro_batches(step.rows.tolist(), data.encoded.lengths, Limit(rows=settings.batch_size))[0]
        rows = rows[::-1] if backwards else rows
        batch = collate([data.encoded.items[i] for i in rows], prepared.tokenizer.pad_token_id)
        loss = _loss(recipe, model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(named.values(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def _loss(recipe: Recipe, model: Any, batch: Batch) -> torch.Tensor:
    """The loss of transformers itself; of tokens in float64.

    On some CPUs PyTorch's cross-entropy over a vocabulary of 49,152 is 7e-6 off in float32, on logits that are
    bit-equal to lorakit's, whose loss is right to 4e-7; over 200 steps that grew to 2.5e-4.
    """
    if recipe.task.kind != "generation":
        labels = batch.labels.float() if recipe.task.kind == "regression" else batch.labels
        found: torch.Tensor = model(**batch.inputs, labels=labels).loss
        return found
    logits, said = model(**batch.inputs).logits[:, :-1], batch.labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1).double(), said.flatten(), ignore_index=IGNORE)


def scores(task: str) -> tuple[list[float], list[float]]:
    """Final validation scores over seeds: (lorakit's, PEFT's)."""
    file, overrides, metric = RECIPES[task]
    ours, theirs = [], []
    for seed in SEEDS:
        given = [
            *overrides,
            "task.limit={train: 2000}",
            "train.epochs=2",
            "train.select=last",
            f"train.seed={seed}",
            PLAIN_HEAD,
        ]
        recipe = load(ROOT / "recipes" / file, given)
        with tempfile.TemporaryDirectory() as scratch:
            train(recipe, Path(scratch) / "run", Silent())
            report = json.loads((Path(scratch) / "run" / "report.json").read_text())
            ours.append(report["metrics"]["validation"][metric])
            theirs.append(trainer_score(recipe, metric, scratch))
        print(f"  {task} seed {seed}: lorakit {ours[-1]:.4f}, PEFT + Trainer {theirs[-1]:.4f}", flush=True)
    return ours, theirs


def trainer_score(recipe: Recipe, metric: str, scratch: str) -> float:
    """PEFT with transformers' Trainer: its initial values, its order, its collation with dynamic padding."""
    set_seed(recipe.train.seed)
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    train_split, validation = (read_split(recipe.task, name, prepared, Silent()) for name in ("train", "validation"))
    model = peft_model(recipe, prepared, torch.float32)
    pad: int = prepared.tokenizer.pad_token_id
    settings = recipe.train
    assert settings.epochs is not None and settings.warmup is not None
    arguments = TrainingArguments(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup.ratio or 0,
        max_grad_norm=settings.max_grad_norm or 0.0,
        seed=settings.seed,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
        label_names=["labels"],
    )

    def together(items: list[Item]) -> dict[str, torch.Tensor]:
        batch = collate(items, pad)
        return {**batch.inputs, "labels": batch.labels.float() if recipe.task.kind == "regression" else batch.labels}

    trainer = Trainer(model, arguments, data_collator=together, train_dataset=list(train_split.encoded.items))
    trainer.train()
    return score(recipe, trainer, validation, metric)


def score(recipe: Recipe, trainer: Trainer, data: SplitData, metric: str) -> float:
    items: Any = list(data.encoded.items)
    logits = torch.as_tensor(trainer.predict(items).predictions)
    assert all(item.labels != IGNORE for item in data.encoded.items)
    regression = recipe.task.kind == "regression"
    predictions = logits[:, 0].tolist() if regression else logits.argmax(-1).tolist()
    return recipe.task.score(data.rows, predictions).values[metric]


def within(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(difference of the means, two pooled standard errors)."""
    pooled = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / 2)
    return statistics.mean(ours) - statistics.mean(theirs), 2 * pooled * math.sqrt(2 / len(ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["losses", "scores"], help="losses, scores")
    parser.add_argument("--tasks", default="stsb,mrpc,e2e")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is absent: parity needs the public data sets")
    tasks = arguments.tasks.split(",")
    if "losses" in arguments.parts:
        rows = [(task, *losses(task)) for task in tasks]
        shown = [
            (
                t,
                f"{first:.4f}",
                f"{last:.4f}",
                f"{worst:.1e}",
                f"{noise:.1e}",
                "yes" if worst <= max(SAME, noise) else "NO",
            )
            for t, first, last, worst, noise in rows
        ]
        header = ["task", "first loss", f"loss at step {STEPS}", "largest difference", "PEFT, rows reversed", "within"]
        print(table(header, shown))
    if "scores" in arguments.parts:
        lines = []
        for task in (t for t in tasks if t != "e2e"):
            ours, theirs = scores(task)
            apart, allowed = within(ours, theirs)
            both = [f"{statistics.mean(x):.4f} ± {statistics.stdev(x):.4f}" for x in (ours, theirs)]
            lines.append(
                (
                    task,
                    RECIPES[task][2],
                    *both,
                    f"{apart:+.4f}",
                    f"{allowed:.4f}",
                    "yes" if abs(apart) <= allowed else "NO",
                )
            )
        print(table(["task", "metric", "lorakit", "PEFT + Trainer", "difference", "two pooled s.e.", "within"], lines))


if __name__ == "__main__":
    main()

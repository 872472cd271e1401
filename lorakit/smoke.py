"""`train --smoke`: the recipe on a tiny random model of its architecture and on made-up rows, through every step.

Seconds, offline: what is replaced is the base, the rows and the sizes; the recipe's methods, task, schedule and all
code paths stay.
"""

import json
from pathlib import Path
from typing import Any

from lorakit.arch import ARCHITECTURES
from lorakit.bases import locate
from lorakit.checkpoint import open_run
from lorakit.configs import CONFIGS
from lorakit.errors import DataError, LorakitError, ModelError
from lorakit.merge import merge
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.session import probe_inputs
from lorakit.tasks.base import Reading, Task
from lorakit.tasks.made_up import text_rows
from lorakit.tiny import make_tiny_base
from lorakit.training.run import train

ROWS = 16
STEPS = 2


def model_type_of(base: str, revision: str | None) -> str:
    """The architecture of a base: from the table, else from the base itself.

    Raises:
        ModelError: The base is neither known nor here.
    """
    if base in CONFIGS:
        return str(CONFIGS[base]["model_type"])
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(locate(base, revision).directory, trust_remote_code=False).model_type)
    except (LorakitError, OSError, ValueError) as error:
        raise ModelError(f"--smoke: the architecture of {base} is unknown here: {error}") from error


def smoke_recipe(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe, shrunk.

    Args:
        recipe: Validated.
        directory: Where the tiny base is put.
    """
    model_type = model_type_of(recipe.model.base, recipe.model.revision)
    if model_type not in ARCHITECTURES:
        raise ModelError(f"--smoke: no tiny model is known for the architecture {model_type}")
    base = make_tiny_base(model_type, directory / "base", seed=recipe.train.seed)
    model = recipe.model.model_copy(update={"base": str(base), "revision": None, "trust_remote_code": False})
    task = made_up(recipe.task.model_copy(update={"max_length": 64, "limit": {}, **_letters(recipe.task)}))
    train = recipe.train.model_copy(
        update={
            "epochs": None,
            "steps": STEPS,
            "batch_size": min(4, recipe.train.batch_size),
            "micro_batch_size": "auto" if recipe.train.micro_batch_size == "auto" else min(2, recipe.train.batch_size),
            "eval_every": STEPS,
            "save_every": STEPS,
            "warmup": None,  # with one, the first of two steps would train at rate 0
            "select": _select(recipe.train.select, task),
        }
    )
    update: dict[str, Any] = {
        "model": model,
        "task": task,
        "train": train,
        "method": [method.shrunk() for method in recipe.method],
    }
    if recipe.generate is not None:
        update["generate"] = recipe.generate.model_copy(update={"max_new_tokens": 4})
    return recipe.model_copy(update=update)


def _letters(task: Task) -> dict[str, list[str]]:
    """Other words for classes, where the recipe has its own: to a tokenizer of bytes, `Not sure` begins with `No`."""
    words = getattr(task, "words", None)
    return {"words": [chr(ord("a") + index) for index in range(len(words))]} if words else {}


def _select(metric: str | None, task: Task) -> str | None:
    """The metric that chooses the step, if made-up rows can have it: execution accuracy needs WikiSQL's database."""
    if metric in (None, "loss", "last") or task.kind != "generation":
        return metric
    return metric if metric in task.score(task.sample(1, seed=0), [""]).values else None


def made_up(task: Task) -> Task:
    """The task with `sample` in the place of its files, and without slow metrics: METEOR takes seconds to start."""
    left_out = dict.fromkeys(task.slow_metrics, "left out of --smoke: slow to start")

    def not_computed(self: Task) -> dict[str, str]:
        return type(task).not_computed(self) | left_out

    def read(self: Task, split: str) -> Reading:
        return Reading(iter(self.sample(ROWS, seed=len(split))))

    try:
        labels = task.labels
    except DataError:  # the classes would be found in a training file that is not here
        labels = ("no", "yes")
    return _replaced(
        task, read=read, not_computed=not_computed, labels=property(lambda _: labels), missing=lambda _: None
    )


def _replaced(task: Task, **members: Any) -> Task:
    """The task with other members in the place of its class's."""
    kind: type[Task] = type(type(task).__name__, (type(task),), {"__doc__": type(task).__doc__, **members})
    return kind.model_construct(**{name: getattr(task, name) for name in type(task).model_fields})


def _started(small: Recipe, scratch: Path, progress: Progress) -> Recipe:
    """The shrunk recipe with a tiny run to start from, which is trained here.

    A task with a head gets a run with three classes, as MNLI has, so that the rule for the head has something to do.
    """
    assert small.train.init_from is not None

    def read(_: Task, split: str) -> Reading:
        return Reading(iter(text_rows(ROWS, len(split), range(3), pair=False)))

    task = small.task
    if task.head != "generation":
        task = _replaced(
            task,
            read=read,
            kind=property(lambda _: "classification"),
            labels=property(lambda _: ("no", "maybe", "yes")),
            metrics=property(lambda _: ("accuracy",)),
        )
    progress.say(f"first a tiny run to start from, in the place of {small.train.init_from.run}")
    directory = scratch / "origin"
    alone = small.train.model_copy(update={"init_from": None, "select": None, "head_bias": "zero"})
    train(small.model_copy(update={"name": "origin", "task": task, "train": alone, "paper": None}), directory, progress)
    init_from = small.train.init_from.model_copy(update={"run": str(directory)})
    return small.model_copy(update={"train": small.train.model_copy(update={"init_from": init_from})})


def smoke(recipe: Recipe, scratch: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Train, evaluate, save, merge and verify the shrunk recipe.

    Args:
        recipe: As it stands in its file.
        scratch: A directory for the tiny base and the merged model.
        out: The run directory.
        progress: For the person.

    Returns:
        The run's report.
    """
    small = smoke_recipe(recipe, scratch)
    if small.train.init_from is not None:
        small = _started(small, scratch, progress)
    run = train(small, out, progress)
    if not any(method.unmergeable() for method in small.method):
        batches = probe_inputs(run.validation[0].encoded, run.prepared.tokenizer.pad_token_id)
        merge(open_run(out, skeleton=True), scratch / "merged", batches=batches)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report

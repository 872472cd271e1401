"""What all contenders start from: lorakit's base with its initial tensors, and lorakit's rows in its order."""

import gc
from typing import TYPE_CHECKING, Any

from lorakit.recipe import Recipe

if TYPE_CHECKING:
    from lorakit.model import Prepared
    from lorakit.splits import SplitData


def read(recipe: Recipe) -> "tuple[Prepared, SplitData]":
    """The model that lorakit prepares, and the training rows; nothing is evaluated or saved."""
    from lorakit.checkpoint import head_of
    from lorakit.model import prepare
    from lorakit.progress import Silent
    from lorakit.splits import read_split

    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    return prepared, read_split(recipe.task, "train", prepared, Silent())


def let_go() -> None:
    """Give memory back once the caller has dropped lorakit's model: the contender's alone is to be counted."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def features(recipe: Recipe, data: "SplitData") -> tuple[list[dict[str, Any]], list[int]]:
    """Features in the order in which lorakit reads the rows, and how many tokens each has."""
    from lorakit.data.batches import step_rows

    train = recipe.train
    assert train.steps is not None and train.steps * train.batch_size <= len(data.encoded), "too few rows for one epoch"
    order = [i for step in step_rows(train.seed, len(data.encoded), train.batch_size, train.steps) for i in step.rows]
    found = []
    for index in order:
        item = data.encoded.items[index]
        one: dict[str, Any] = {"input_ids": item.input_ids.tolist(), "attention_mask": [1] * len(item.input_ids)}
        if item.token_type_ids is not None:
            one["token_type_ids"] = item.token_type_ids.tolist()
        one["labels"] = item.labels.tolist()
        if recipe.task.kind == "regression":
            one["labels"] = float(one["labels"])
        found.append(one)
    return found, [len(one["input_ids"]) for one in found]

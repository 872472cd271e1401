"""A recipe's model without its weights, for `plan`: from the base where it is on this machine, else from `CONFIGS`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorakit.arch import Architecture, architecture, max_tokens
from lorakit.configs import CONFIGS
from lorakit.errors import DataError, ModelError
from lorakit.head_bias import regression_bias
from lorakit.methods.base import Coverage, Method
from lorakit.methods.whole import check_quantised
from lorakit.model import Base, Head, Prepared, attach, build_skeleton, prepare, suit
from lorakit.nf4 import LOAD_DTYPE, outlined, quantisable
from lorakit.recipe import Recipe
from lorakit.weights import model_entries

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Outline:
    """A prepared model on the meta device.

    Args:
        model: With the task's head and the methods.
        row: The architecture.
        methods: Resolved for the architecture.
        coverage: What each method's targets matched.
        prepared: The same with its tokenizer, where the base is on this machine.
        dtype: Of the frozen weights, once loaded.
    """

    model: Any
    row: Architecture
    methods: list[Method]
    coverage: list[Coverage]
    prepared: Prepared | None
    dtype: torch.dtype

    @property
    def max_tokens(self) -> int | None:
        """Longest input that the model has positions for."""
        return max_tokens(self.model.config)


@contextmanager
def offline() -> Iterator[None]:
    """As with HF_HUB_OFFLINE=1: what is in the local caches can be used, and nothing is fetched."""
    import datasets
    from huggingface_hub import constants

    places: tuple[Any, ...] = (constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def outline(recipe: Recipe, on_cuda: bool, hint: str = "") -> Outline:
    """The recipe's model on the meta device.

    Args:
        recipe: Validated.
        on_cuda: Whether the run would use a GPU, which decides what `dtype: auto` means.
        hint: What to do about a base that is nowhere, for the error.

    Raises:
        ModelError: The base is neither on this machine nor in `CONFIGS`, or does not fit the task.
        RecipeError: A target or an option does not fit the model.
    """
    base, head, seed = recipe.model, planned_head(recipe), recipe.train.seed
    known = CONFIGS.get(base.base)
    try:
        located = base.locate()
    except ModelError as error:
        if known is None:
            raise ModelError(f"{error}{hint}") from error
        return _from_table(base, known, head, recipe, on_cuda)
    found = prepare(base, recipe.method, head, seed, skeleton=True)
    if recipe.train.head_bias == "mean":
        regression_bias(found.model, found.row, found.file_names)
    entries = model_entries(located.directory).values()
    dtypes = {_DTYPES.get(entry.dtype, torch.float32) for entry in entries}
    dtype = frozen_dtype(base, next(iter(dtypes)) if len(dtypes) == 1 else None, on_cuda)
    cast_frozen(found.model, dtype)
    if found.quantised is not None:
        outlined(found.model, found.quantised.modules)
    return Outline(found.model, found.row, found.methods, found.coverage, found, dtype)


def planned_head(recipe: Recipe) -> Head:
    """What the task asks of the model; two classes where they would be found in a file that is not here."""
    try:
        labels = recipe.task.labels
    except DataError:
        labels = ("no", "yes")
    return Head(recipe.task.head, labels)


def _from_table(base: Base, fields: dict[str, Any], head: Head, recipe: Recipe, on_cuda: bool) -> Outline:
    from transformers import AutoConfig

    config: Any = AutoConfig.for_model(**fields)
    suit(config, base, head)
    row = architecture(config)
    if head.kind == "generation" and not row.decoder:
        raise ModelError(f"model.base: {base.base}: a {row.model_type} model cannot generate; the task needs a decoder")
    model = build_skeleton(base, config, head)
    coverage = attach(model, row, recipe.method, head, set(), recipe.train.seed)
    if recipe.train.head_bias == "mean":
        regression_bias(model, row)
    methods = [method.resolve(row) for method in recipe.method]
    dtype = frozen_dtype(base, config.dtype, on_cuda)
    cast_frozen(model, dtype)
    if base.quantize:
        modules = quantisable(build_skeleton(base, config, head), () if head.kind == "generation" else row.head)
        check_quantised(model, modules)
        outlined(model, modules)
    return Outline(model, row, methods, coverage, None, dtype)


def frozen_dtype(base: Base, of_files: torch.dtype | None, on_cuda: bool) -> torch.dtype:
    """The dtype that weights are loaded in: the recipe's, or the files' own on CUDA and float32 on CPU."""
    if base.quantize:
        return LOAD_DTYPE
    if base.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[base.dtype]
    return (of_files or torch.float32) if on_cuda else torch.float32


def cast_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the frozen weights of a meta-device model the dtype that loading gives them."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)

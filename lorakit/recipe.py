"""The recipe: a YAML file as one frozen, validated object, and what is wrong with it in the reader's words.

`load` reports every problem of a file at once, one line each:

    recipes/x.yaml:12: train.lrr: unknown key; did you mean "lr"? allowed: epochs, steps, ...
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from lorakit import yamltree
from lorakit.errors import RecipeError
from lorakit.methods import METHODS
from lorakit.methods.base import Method
from lorakit.model import Base
from lorakit.recipe_errors import Misfit, Schema, explain, refusal_of
from lorakit.references import Paper, PaperRow
from lorakit.schedule import InitFrom, Train, Warmup
from lorakit.section import Section
from lorakit.tasks import TASKS
from lorakit.tasks.base import Task
from lorakit.variants import unknown
from lorakit.yamltree import Path, Tree, show

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,59}")


def union(table: Mapping[str, type[Section]]) -> Any:
    """The type "one of these sections, told apart by `name`".

    A callable discriminator, since a plain union reports one typo once per member.

    Args:
        table: Name → class; at least two.
    """

    def name_of(value: Any) -> str | None:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        return name if isinstance(name, str) else None

    members = tuple(Annotated[section, Tag(name)] for name, section in table.items())
    return Annotated[Union[members], Discriminator(name_of)]  # noqa: UP007 (the members are known at run time only)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict | Method) else value


if TYPE_CHECKING:
    Methods = list[Method]
    AnyTask = Task
else:
    AnyTask = union(TASKS)
    _AnyMethod = union(METHODS)
    Methods = Annotated[
        list[_AnyMethod],
        Field(min_length=1),
        BeforeValidator(_as_list, json_schema_input_type=_AnyMethod | Annotated[list[_AnyMethod], Field(min_length=1)]),
    ]


class Generate(Section):
    """How text is generated when a task that generates is evaluated, and by `predict`."""

    beams: Annotated[int, Field(ge=1, le=100)] = 1
    """Texts that are followed up at each step; 1: greedy."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Beam search ranks texts by log-probability / length ** length_penalty: above 0 favours long ones."""
    no_repeat_ngram: NonNegativeInt = 0
    """Never generate the same n-gram twice; the prompt does not count (as in the authors' code); 0: off."""
    max_new_tokens: PositiveInt = 64
    """Where generation stops at the latest."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts at which generation stops, beside the end-of-sequence token; they are not part of the output."""

    @field_validator("length_penalty")
    @classmethod
    def _ranks_something(cls, penalty: float, info: ValidationInfo) -> float:
        if info.data.get("beams") == 1 and penalty != cls.model_fields["length_penalty"].default:
            raise ValueError("greedy decoding has one text to choose from: set beams to 2 or more, or remove this")
        return penalty


class Variation(Section):
    """What one of the methods that `lorakit compare` trains has for itself; null: as in the recipe."""

    method: Methods | None = None
    """The method's own section, or a list; null: that of the name."""
    lr: PositiveFloat | None = None
    """Learning rate; null: `train.lr` for the recipe's own method, a usual one of the method else."""
    epochs: PositiveInt | None = None
    """Passes over the training rows, in the place of `train.epochs` and `train.steps`."""
    steps: PositiveInt | None = None
    """Optimiser steps, in the place of `train.epochs` and `train.steps`."""
    batch_size: PositiveInt | None = None
    """Examples per optimiser step."""
    weight_decay: NonNegativeFloat | None = None
    """Decoupled decay of all trained matrices."""
    warmup: Warmup | None = None
    """How long the learning rate rises; `{steps: 0}`: not at all."""
    init_from: InitFrom | Literal["base"] | None = None
    """Another run of this method to start from; base: from none; null: as in the recipe, whose run is one of its own
    method."""
    paper: PaperRow | None = None
    """The number of this method's row, by the metric and from the source of the recipe's `paper`, without which it is
    nothing."""

    @field_validator("steps")
    @classmethod
    def _one_length(cls, steps: int | None, info: ValidationInfo) -> int | None:
        if steps is not None and info.data.get("epochs") is not None:
            raise ValueError("epochs and steps are both given; keep one")
        return steps

    @field_serializer("method", mode="wrap")
    def _one_method(self, method: Methods | None, to_data: SerializerFunctionWrapHandler) -> Any:
        data = to_data(method)
        return data[0] if data and len(data) == 1 else data


class Recipe(Section):
    """What to train, with which method, on what, and how."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Of the run directory: letters, digits, dot, underscore, hyphen; default: the file's name without its ending."""
    model: Base
    """The frozen base model."""
    method: Methods
    """What is trained; a list is applied in order."""
    task: AnyTask
    """The data and its metrics."""
    train: Train
    """The schedule."""
    generate: Annotated[Generate | None, Field(validate_default=True)] = None
    """How text is generated; only where the task generates."""
    paper: Paper | None = None
    """The number that the recipe reproduces."""
    methods: dict[str, Variation] = {}
    """What methods that `lorakit compare` sets beside this recipe's have for themselves: the name of a method, or any
    name for one with a `method` of its own → its values."""

    # Field validators, and not one on the whole recipe: each speaks as soon as the sections that it needs are valid.
    @field_validator("method")
    @classmethod
    def _go_together(cls, methods: Methods, info: ValidationInfo) -> Methods:
        model = info.data.get("model")
        if model and model.quantize and (why := [key for m in methods if (key := m.needs_whole_weights())]):
            raise ValueError(
                f"{', '.join(why)} trains the base's own tensors, which quantize: {model.quantize} keeps in 4 bits; "
                "use lora, or set model.quantize to null"
            )
        for index, first in enumerate(methods):
            for second in methods[index + 1 :]:
                if second.name not in first.combines_with:
                    raise ValueError(_misfit(first, second))
        return methods

    @field_validator("train")
    @classmethod
    def _train_fits(cls, train: Train, info: ValidationInfo) -> Train:
        model, task = info.data.get("model"), info.data.get("task")
        problems: dict[Path, str] = {}
        if model and train.precision == "float32" and model.dtype in ("bfloat16", "float16"):
            problems["precision",] = (
                f"float32 gains nothing from a base rounded to {model.dtype}; "
                f"set model.dtype to float32, or train.precision to {model.dtype} or auto"
            )
        if model and model.quantize and train.precision in ("float32", "float16"):
            problems["precision",] = f"a base in {model.quantize} computes in bfloat16; set it to auto"
        if model and model.quantize and train.parallel == "fsdp":
            problems["parallel",] = f"fsdp cannot cut the weights of quantize: {model.quantize} into parts; use ddp"
        if task and train.label_smoothing and task.kind == "regression":
            problems["label_smoothing",] = "a regression task has no classes to smooth; set it to 0"
        if task and train.head_bias == "mean" and task.kind != "regression":
            problems["head_bias",] = f"{task.name} ({task.kind}) has no scores to take the mean of; set it to zero"
        methods = info.data.get("method")
        if methods and train.optimizer.lr_b_ratio is not None and all(method.name != "lora" for method in methods):
            problems["optimizer", "lr_b_ratio"] = "LoRA+ is of LoRA's B matrices; use method lora, or set this to null"
        if task and train.select is not None and train.select not in (*task.metrics, "loss", "last"):
            problems["select",] = refusal_of(train.select, [*task.metrics, "loss", "last"])
        if problems:
            raise Misfit(problems)
        return train

    @field_validator("generate")
    @classmethod
    def _generate_where_text(cls, generate: Generate | None, info: ValidationInfo) -> Generate | None:
        task = info.data.get("task")
        if task is None:
            return generate
        if task.kind == "generation":
            return generate or Generate()
        if generate is not None:
            raise ValueError(f"the task {task.name} ({task.kind}) generates no text; remove this section")
        return None

    @field_validator("paper")
    @classmethod
    def _paper_metric(cls, paper: Paper | None, info: ValidationInfo) -> Paper | None:
        task = info.data.get("task")
        if task is None or paper is None:
            return paper
        problems = _strange_metrics(paper, task, ())
        if paper.metric not in (*task.metrics, "loss"):
            problems["metric",] = refusal_of(paper.metric, [*task.metrics, "loss"])
        if paper.split is not None and task.splits and paper.split not in task.splits:
            problems["split",] = refusal_of(paper.split, task.splits)
        if problems:
            raise Misfit(problems)
        return paper

    @field_validator("methods")
    @classmethod
    def _methods_known(cls, methods: dict[str, Variation], info: ValidationInfo) -> dict[str, Variation]:
        own = {name: variation for name, variation in methods.items() if variation.method}
        problems: dict[Path, str] = {
            (name,): f"no method has this name: {problem}; or give it a `method` of its own"
            for name in methods
            if (problem := unknown(name, own))
        }
        for name in methods:
            if not _FILE_NAME.fullmatch(name):
                problems[name,] = "a name has letters, digits, dot, underscore, hyphen and plus, at most 60"
        for name, row in ((name, variation.paper) for name, variation in methods.items() if variation.paper):
            if task := info.data.get("task"):
                problems |= _strange_metrics(row, task, (name, "paper"))
        if problems:
            raise Misfit(problems)
        return methods

    @field_serializer("method", mode="wrap")
    def _one_method(self, method: Methods, to_data: SerializerFunctionWrapHandler) -> Any:
        data = to_data(method)
        return data[0] if len(data) == 1 else data


def _strange_metrics(row: PaperRow, task: Task, path: Path) -> dict[Path, str]:
    """Path → what is wrong, of the keys of `others` that are no metrics of the task."""
    strange = [name for name in row.others if name not in (*task.metrics, "loss")]
    return {(*path, "others", name): refusal_of(name, [*task.metrics, "loss"]) for name in strange}


def _misfit(first: Method, second: Method) -> str:
    """Why two methods cannot stand in one list in this order."""
    pair = f"{first.name} and {second.name}"
    if first.name == second.name:
        return f"{first.name} stands there twice; keep one"
    if first.name in second.combines_with:
        return f"put {second.name} in front of {first.name}: a prefix is laid over what the other changes"
    known = [f"{a} with {', '.join(m.combines_with)}" for a, m in METHODS.items() if m.combines_with]
    return f"{pair} cannot be combined; what can: {'; '.join(known)}"


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: A YAML file.
        overrides: Values that replace the file's, as `train.lr=1e-4` or `task.limit={train: 2000}`.

    Raises:
        RecipeError: The file is no YAML (see `yamltree.parse`); or everything that is wrong with its content and with
            the overrides, one message each, in the order of the file.
    """
    tree = yamltree.read(path)
    problems = [problem for text in overrides for problem in _override(tree, text)]
    if tree.data.get("name") is None:
        tree.data["name"] = FilePath(path).stem
    try:
        # As JSON: strict validation then takes a list for a tuple and text for a path, which is all that YAML can say.
        recipe = Recipe.model_validate_json(json.dumps(tree.data))
    except ValidationError as error:
        problems += explain(error, tree, json_schema())
        raise RecipeError(*problems) from error
    if problems:
        raise RecipeError(*problems)
    return recipe


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, with the keys that the file left out; `load` reads it back as an equal recipe."""
    return yamltree.render(recipe.model_dump(mode="json", by_alias=True))


def flat(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values by dotted key, such as `train.lr`; an item of a list by its index, an empty one as it is."""
    return _flat(recipe.model_dump(mode="json"))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict | list) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inner in items:
        found |= _flat(inner, f"{path}.{key}" if path else str(key))
    return found


def json_schema() -> Schema:
    """The JSON schema of recipe files, for editors: keys, types, bounds, defaults and what each key means."""
    schema: Schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= Recipe.model_json_schema(mode="validation")
    schema["required"].remove("name")  # the file's name stands in
    for section in (*METHODS.values(), *TASKS.values()):
        # The class knows its own name; in a file it is what tells the sections apart.
        definition = schema["$defs"][section.__name__]
        definition["required"] = ["name", *(key for key in definition.get("required", []) if key != "name")]
    return schema


def _override(tree: Tree, text: str) -> list[str]:
    """Apply one `key=value`; what is wrong with it."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")) or not key.isprintable():
        return [f"command line: {show(text)} is no key=value, such as train.lr=1e-4"]
    try:
        tree.assign(key, yamltree.parse_value(value, key))
    except RecipeError as error:
        return list(error.problems)
    return []

"""Which recipe a name stands for: the person's recipe with another method and that method's rates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import RecipeError
from lorakit.recipe import Recipe, Variation, load
from lorakit.references import Paper
from lorakit.trials.jobs import slug
from lorakit.variants import parts, unknown, variants


@dataclass(frozen=True)
class Given:
    """What the person gave.

    Args:
        file: A recipe.
        overrides: `key=value`.
        recipe: Both, loaded.
        decoder: Whether its base is one: methods' usual rates differ.
    """

    file: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    decoder: bool


def read(file: Path, overrides: Sequence[str]) -> Given:
    """Load a recipe, and find out what its base is.

    Raises:
        LorakitError: The recipe is wrong, or the base is not there.
    """
    from lorakit.arch import architecture
    from lorakit.model import Head, load_config

    recipe = load(file, overrides)
    # The kind of head does not matter here, and the classes may have to be read from the data.
    config = load_config(recipe.model, recipe.model.locate(), Head("generation"))
    return Given(file, tuple(overrides), recipe, architecture(config).decoder)


def check_names(given: Given, names: Sequence[str]) -> None:
    """Refuse names that nothing is known by, all at once, and repeated ones.

    Raises:
        RecipeError: With the nearest name.
    """
    problems = [f"--methods: {text}" for name in names if (text := unknown(name, given.recipe.methods))]
    problems += [f"--methods: {name} is given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if not names:
        problems.append(f"--methods: names none; there are {', '.join([*given.recipe.methods, *variants()])}")
    if problems:
        raise RecipeError(*problems)


def recipe_for(given: Given, name: str, seed: int, over: Sequence[str] = ()) -> Recipe:
    """The recipe of one run.

    Args:
        given: The person's.
        name: See `variants`; or one of the recipe's `methods` map.
        seed: Of this run.
        over: `key=value` that replace what all this comes to.

    Raises:
        RecipeError: The method does not exist or its values do not fit the recipe.
    """
    recipe = given.recipe
    own = recipe.methods.get(name, Variation())
    sections = _sections(recipe, name)
    method = own.model_dump(mode="json")["method"] or [section for section, _ in sections]
    train = {key: value for _, changes in sections for key, value in changes.items()}
    train |= _train_of(own)
    if all(section["name"] != "lora" for section in (method if isinstance(method, list) else [method])):
        train["optimizer.lr_b_ratio"] = None  # LoRA+'s
    values = {
        "name": f"{recipe.name[:60]}-{slug(name)}",
        "method": method[0] if isinstance(method, list) and len(method) == 1 else method,
        "methods": {},
        "train.seed": seed,
        **{f"train.{key}": value for key, value in train.items()},
    }
    if not is_own(recipe, name):
        row = paper_of(recipe, name)  # the recipe's number is that of its own method
        values["paper"] = row.model_dump(mode="json") if row else None
    made = _loaded(given, name, values, over)
    _check_start(made, recipe, name)
    if own.lr is None and not _takes_own_rate(recipe, name):
        made = _loaded(given, name, {**values, "train.lr": made.method[0].usual_lr[int(given.decoder)]}, over)
    return made


def paper_of(recipe: Recipe, name: str) -> Paper | None:
    """The number that a name's runs are compared with; None where the recipe has none."""
    if is_own(recipe, name):
        return recipe.paper
    own = recipe.methods.get(name, Variation())
    return recipe.paper.of(own.paper) if recipe.paper and own.paper else None


def _check_start(made: Recipe, recipe: Recipe, name: str) -> None:
    """Refuse to start one method from what another has trained: that could only fail later."""
    start = made.train.init_from
    if start is None or start != recipe.train.init_from:
        return
    mine, theirs = (" + ".join(section.name for section in one.method) for one in (made, recipe))
    if mine != theirs:
        raise RecipeError(
            f"{name}: train.init_from.run: {start.run} is for {theirs}; name a run of this method in "
            f"methods.{name}.init_from, or `base`; or start all from the base with train.init_from=null"
        )


def _loaded(given: Given, name: str, values: dict[str, Any], over: Sequence[str]) -> Recipe:
    said = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    try:
        return load(given.file, [*given.overrides, *said, *over])
    except RecipeError as error:
        raise RecipeError(
            *(f"{name}: {problem.removeprefix('command line: ')}" for problem in error.problems)
        ) from None


def _sections(recipe: Recipe, name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(method section, changes to `train`) of each part; a method that the recipe has keeps the recipe's values."""
    if (own := recipe.methods.get(name)) is not None and own.method:
        return []
    mine = {section.name: section.model_dump(mode="json") for section in recipe.method}
    found = []
    for part in parts(name):
        if (own := recipe.methods.get(part)) is not None and own.method:
            found += [(section.model_dump(mode="json"), _train_of(own)) for section in own.method]
            continue
        variant = variants()[part]
        found.append(({**mine.get(variant.method["name"], {}), **variant.method}, dict(variant.train)))
    return found


def _train_of(own: Variation) -> dict[str, Any]:
    keys = ("lr", "epochs", "steps", "batch_size", "weight_decay", "warmup", "init_from")
    train = {key: value for key, value in own.model_dump(mode="json", include=set(keys)).items() if value is not None}
    if own.init_from == "base":
        train["init_from"] = None
    if "epochs" in train or "steps" in train:
        train = {"epochs": None, "steps": None} | train
    return train


def is_own(recipe: Recipe, name: str) -> bool:
    """Whether a name says what the recipe itself trains."""
    return name not in recipe.methods and parts(name) == [section.name for section in recipe.method]


def _takes_own_rate(recipe: Recipe, name: str) -> bool:
    """Whether the recipe's rate was chosen for this method, or for the one of which it is an option."""
    if (own := recipe.methods.get(name)) is not None and own.method:
        return own.method[0].name == recipe.method[0].name
    first = parts(name)[0]
    if (own := recipe.methods.get(first)) is not None and own.method:
        return own.lr is not None or own.method[0].name == recipe.method[0].name
    return bool(variants()[first].method["name"] == recipe.method[0].name)

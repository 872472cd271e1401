import json
from pathlib import Path

import pytest

from lorakit.progress import Silent
from lorakit.recipe import Recipe, dump, json_schema, load
from lorakit.smoke import model_type_of, smoke

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCHEMA = ROOT / "docs/recipe.schema.json"


def combination(recipe: Recipe) -> tuple[str, ...]:
    """Architecture, methods and task of a recipe: what decides which code it runs."""
    methods = "+".join(method.name for method in recipe.method)
    return model_type_of(recipe.model.base, recipe.model.revision), methods, recipe.task.name, recipe.task.kind


def in_turn() -> list[object]:
    """Every recipe; those whose combination came before are `long`."""
    seen: set[tuple[str, ...]] = set()
    cases = []
    for file in RECIPES:
        found = combination(load(file))
        cases.append(pytest.param(file, id=file.stem, marks=[pytest.mark.long] if found in seen else []))
        seen.add(found)
    return cases


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_loads_and_is_complete(file: Path, tmp_path: Path) -> None:
    recipe = load(file)
    assert recipe.name == file.stem
    (tmp_path / "again.yaml").write_text(dump(recipe))
    assert load(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_says_how_it_is_checked_and_run(file: Path) -> None:
    lines = file.read_text().splitlines()
    up = "../" * len(file.relative_to(ROOT).parts[:-1])
    assert lines[0] == f"# yaml-language-server: $schema={up}docs/recipe.schema.json"
    head = [line for line in lines if line.startswith("#")]
    assert any(f"lorakit train {file.relative_to(ROOT)}" in line for line in head)


@pytest.mark.parametrize("file", in_turn())
def test_a_recipe_passes_its_smoke_run(
    file: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data lies
    found = smoke(load(file), tmp_path / "scratch", tmp_path / "run", Silent())
    assert found["steps"] == 2
    assert (tmp_path / "scratch/merged/config.json").is_file()


def test_the_schema_beside_the_docs_is_the_one_that_checks() -> None:
    if not SCHEMA.is_file():
        pytest.skip("docs/recipe.schema.json is not there: make docs")
    assert json.loads(SCHEMA.read_text()) == json_schema(), "out of date: make docs"

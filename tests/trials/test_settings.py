from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import recipe_file

from lorakit.errors import RecipeError
from lorakit.methods import METHODS
from lorakit.recipe import Recipe, dump, load
from lorakit.trials.settings import Given, check_names, read, recipe_for
from lorakit.variants import parts, unknown, variants

Tiny = Callable[[str], Path]
Make = Callable[..., Given]


@pytest.fixture
def given(tmp_path: Path, tiny: Tiny) -> Make:
    def make(model_type: str = "bert", overrides: tuple[str, ...] = (), **sections: Any) -> Given:
        kind = "classification" if model_type == "bert" else "completion"
        return read(recipe_file(tmp_path, tiny(model_type), kind, **sections), overrides)

    return make


def section(recipe: Recipe) -> dict[str, Any]:
    (method,) = recipe.method
    return method.model_dump(mode="json")


def test_names() -> None:
    assert {*METHODS, "houlsby", "lin", "pfeiffer", "dora", "pissa", "rslora", "lora+"} == set(variants())
    assert parts("lora+") == ["lora+"]
    assert parts("lora+preembed") == ["lora", "preembed"]
    assert unknown("lora+preembed") is None
    assert "did you mean" in (unknown("lora+prembed") or "")


@pytest.mark.parametrize("name", list(variants()))
def test_every_name_makes_a_recipe_that_can_be_read_back(given: Make, tmp_path: Path, name: str) -> None:
    made = recipe_for(given(), name, seed=3)
    assert made.train.seed == 3
    assert made.name == "small-" + ("loraplus" if name == "lora+" else name)
    file = tmp_path / "made.yaml"
    file.write_text(dump(made))
    assert load(file) == made


@pytest.mark.parametrize("name", [*METHODS])
def test_every_method_has_usual_rates_that_are_sensible(name: str) -> None:
    assert all(1e-6 < rate < 0.1 for rate in METHODS[name].usual_lr)


def test_options_keep_the_recipe_s_own_values(given: Make) -> None:
    mine = given(method={"rank": 3, "alpha": 7, "targets": ["k"]})
    for name, key, value in [("dora", "dora", True), ("pissa", "init", "pissa"), ("rslora", "rslora", True)]:
        found = section(recipe_for(mine, name, 0))
        assert (found["rank"], found["alpha"], found["targets"], found[key]) == (3, 7.0, ["k"], value)
    assert recipe_for(mine, "lora+", 0).train.optimizer.lr_b_ratio == 16
    assert section(recipe_for(mine, "lora+", 0)) == section(recipe_for(mine, "lora", 0))
    combined = recipe_for(mine, "lora+preembed", 0).method
    assert [one.name for one in combined] == ["lora", "preembed"]
    assert combined[0].model_dump()["rank"] == 3


def test_an_adapter_s_kind_is_its_name(given: Make) -> None:
    for name in ("houlsby", "lin", "pfeiffer"):
        assert section(recipe_for(given(), name, 0))["variant"] == name


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_learning_rates(given: Make, model_type: str) -> None:
    map_ = {"bitfit": {"lr": 0.5}, "mine": {"lr": 0.25, "method": {"name": "lora", "rank": 1}}}
    mine = given(model_type, methods=map_)
    assert recipe_for(mine, "lora", 0).train.lr == 0.01, "the recipe's own method: the recipe's"
    assert recipe_for(mine, "lora+preembed", 0).train.lr == 0.01
    assert recipe_for(mine, "full", 0).train.lr == METHODS["full"].usual_lr[model_type == "gpt2"]
    assert recipe_for(mine, "prelayer", 0).train.lr == METHODS["prelayer"].usual_lr[model_type == "gpt2"]
    assert recipe_for(mine, "bitfit", 0).train.lr == 0.5, "the map's"
    assert recipe_for(mine, "mine", 0).train.lr == 0.25
    assert section(recipe_for(mine, "mine", 0))["rank"] == 1


def test_the_map_s_values_reach_the_run_and_the_map_does_not(given: Make) -> None:
    values = {"steps": 7, "batch_size": 3, "weight_decay": 0.5, "warmup": {"steps": 2}}
    made = recipe_for(given(methods={"full": values, "lora": {"epochs": 5}}), "full", 1)
    train = made.train
    assert (train.steps, train.epochs, train.batch_size, train.weight_decay) == (7, None, 3, 0.5)
    assert train.warmup is not None
    assert train.warmup.steps == 2
    assert made.methods == {}
    assert recipe_for(given(methods={"lora": {"epochs": 5}}), "lora", 1).train.epochs == 5


def test_a_run_to_start_from_is_one_of_the_same_method(given: Make) -> None:
    mine = given(
        train={"init_from": {"run": "runs/mnli"}}, methods={"bitfit": {"init_from": {"run": "runs/mnli-bitfit"}}}
    )
    for name, run in (("lora", "runs/mnli"), ("dora", "runs/mnli"), ("bitfit", "runs/mnli-bitfit")):
        start = recipe_for(mine, name, 0).train.init_from
        assert start is not None and start.run == run
    wanted = "full: train.init_from.run: runs/mnli is for lora; name a run of this method in methods.full.init_from"
    with pytest.raises(RecipeError, match=wanted):
        recipe_for(mine, "full", 0)
    assert recipe_for(given(overrides=("train.init_from=null",)), "full", 0).train.init_from is None
    alone = given(train={"init_from": {"run": "runs/mnli"}}, methods={"full": {"init_from": "base"}})
    assert recipe_for(alone, "full", 0).train.init_from is None


def test_overrides_count_for_every_method(given: Make) -> None:
    mine = given(overrides=("train.batch_size=5", "method.rank=4", "train.optimizer.lr_b_ratio=4"))
    assert recipe_for(mine, "full", 0).train.batch_size == 5
    assert recipe_for(mine, "full", 0).train.optimizer.lr_b_ratio is None, "it is LoRA's alone"
    assert recipe_for(mine, "lora", 0).train.optimizer.lr_b_ratio == 4
    assert section(recipe_for(mine, "dora", 0))["rank"] == 4


def test_what_lies_over_a_method_counts_last(given: Make) -> None:
    mine = given(methods={"full": {"lr": 0.25, "batch_size": 3}})
    made = recipe_for(mine, "full", 0, ["train.lr=0.5"])
    assert (made.train.lr, made.train.batch_size) == (0.5, 3)
    assert section(recipe_for(mine, "dora", 0, ["method.rank=7"]))["rank"] == 7
    assert recipe_for(mine, "bitfit", 0, ["train.lr=0.5"]).train.lr == 0.5, "and before a usual rate"
    with pytest.raises(RecipeError, match="full: method.rank: unknown key"):
        recipe_for(mine, "full", 0, ["method.rank=7"])


def test_the_paper_s_number_is_that_of_the_recipe_s_own_method(given: Make) -> None:
    paper = {"source": "Table 2", "metric": "accuracy", "value": 90.0}
    assert recipe_for(given(paper=paper), "lora", 0).paper is not None
    assert recipe_for(given(paper=paper), "full", 0).paper is None
    row = {"value": 80.0, "tolerance": 1.0, "label": "FT*"}
    made = recipe_for(given(paper=paper | {"std": 0.3, "seeds": 5}, methods={"full": {"paper": row}}), "full", 0).paper
    assert made is not None
    assert (made.value, made.tolerance, made.label, made.std) == (80.0, 1.0, "FT*", None)
    assert (made.source, made.metric, made.seeds) == ("Table 2", "accuracy", 5), "what the table's rows share"
    assert recipe_for(given(methods={"full": {"paper": row}}), "full", 0).paper is None, "of no metric"


def test_unknown_names_and_repeated_ones(given: Make) -> None:
    with pytest.raises(RecipeError) as raised:
        check_names(given(), ["lora", "bitfitt", "lora", "full+nonesuch"])
    first, second, third = raised.value.problems
    assert first.startswith('--methods: got "bitfitt"; did you mean "bitfit"?')
    assert '"nonesuch"' in second
    assert third == "--methods: lora is given twice"
    with pytest.raises(RecipeError, match="names none; there are lora, full"):
        check_names(given(), [])


def test_a_method_that_does_not_fit_is_told_with_its_name(given: Make) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe_for(given(), "full+bitfit", 0)
    assert all(problem.startswith("full+bitfit: ") for problem in raised.value.problems)


@pytest.mark.parametrize(
    ("map_", "expected"),
    [
        ({"full": {"lrr": 1.0}}, 'methods.full.lrr: unknown key; did you mean "lr"?'),
        ({"ful": {"lr": 1.0}}, 'methods.ful: no method has this name: got "ful"; did you mean "full"?'),
        ({"full": {"lr": "high"}}, 'methods.full.lr: got "high"'),
        ({"full": {"steps": 3, "epochs": 1}}, "methods.full.steps: epochs and steps are both given"),
        ({"mine": {"method": {"name": "lora", "rnk": 3}}}, 'did you mean "rank"?'),
        ({"full": {"batch_size": 0}}, "methods.full.batch_size: got 0"),
    ],
)
def test_the_map_is_strict(tmp_path: Path, tiny: Tiny, map_: dict[str, Any], expected: str) -> None:
    file = recipe_file(tmp_path, tiny("bert"), methods=map_)
    with pytest.raises(RecipeError) as raised:
        load(file)
    (problem,) = raised.value.problems
    assert expected in problem
    line = int(problem.removeprefix(f"{file}:").split(":")[0])
    assert any(
        f'"{key}"' in file.read_text().splitlines()[line - 1] for key in (*map_, *next(iter(map_.values())), "rnk")
    )

from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import small_recipe

from lorakit.configs import CONFIGS
from lorakit.errors import RecipeError
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.sweep.axes import read_words
from lorakit.sweep.budget import Counts, counted, parse_budget, rank_of, within
from lorakit.sweep.points import grid
from lorakit.sweep.prepare import prepare
from lorakit.trials.settings import Given

Tiny = Callable[[str], Path]
RECIPES = Path(__file__).parents[2] / "recipes"


def budgeted(file: Path, words: list[str], budget: int) -> dict[str, tuple[int | None, int]]:
    """Targets → (rank, parameters)."""
    fixed, axes = read_words(words, random=False)
    given = Given(file, tuple(fixed), load(file, fixed), decoder=True)
    made = prepare(given, grid(axes), budget, Silent())
    return {one.point.title.removeprefix("targets "): (rank_of(one.recipe), one.parameters) for one in made}


def test_the_paper_s_table_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-3's width of 12,288, queries, keys and values in one matrix as GPT-2 has them; 8 of its 96 layers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(CONFIGS, "openai-community/gpt2-medium", gpt3(layers=8))
    words = ["method.targets=[q],[k],[v],[o],[q, k],[q, v],[q, k, v, o]"]
    found = budgeted(RECIPES / "gpt2_medium_e2e.yaml", words, parse_budget("18M") * 8 // 96)
    ranks = {"q": 8, "k": 8, "v": 8, "o": 8, "q, k": 4, "q, v": 4, "q, k, v, o": 2}
    assert found == {targets: (rank, 18_874_368 * 8 // 96) for targets, rank in ranks.items()}


@pytest.mark.slow
def test_all_of_gpt3_s_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(CONFIGS, "openai-community/gpt2-medium", gpt3(layers=96))
    words = ["method.targets=[q, v]"]
    recipe = within(load(RECIPES / "gpt2_medium_e2e.yaml", words), parse_budget("18M"))
    assert (rank_of(recipe), counted(recipe).parameters) == (4, 18_874_368)


def gpt3(layers: int) -> dict[str, object]:
    return {**CONFIGS["openai-community/gpt2-medium"], "n_embd": 12288, "n_layer": layers, "n_head": 96}


def test_grouped_query_heads_count_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3 8B: 32 layers of width 4,096, keys and values of 8 heads of 128."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = ["method.targets=[q],[v],[q, v],[q, k, v, o]"]
    found = budgeted(RECIPES / "llama3_8b_wikisql.yaml", words, parse_budget("3.4M"))
    wide, narrow = 32 * (4096 + 4096), 32 * (4096 + 1024)
    assert found == {
        "q": (13, 13 * wide),
        "v": (21, 21 * narrow),
        "q, v": (8, 8 * (wide + narrow)),
        "q, k, v, o": (4, 4 * (2 * wide + 2 * narrow)),
    }
    assert 8 * (wide + narrow) == 3_407_872, "as the paper's formula has it"


@pytest.mark.parametrize(
    ("text", "count"), [("18M", 18_000_000), ("0.3m", 300_000), ("294912", 294_912), ("4.5k", 4500), ("1B", 10**9)]
)
def test_budgets(text: str, count: int) -> None:
    assert parse_budget(text) == count


@pytest.mark.parametrize("text", ["", "0", "M", "-1", "1e6", "18 M", "18T", "0.1"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(RecipeError, match="--budget: got"):
        parse_budget(text)


def one_rank(rank: int, **options: object) -> dict[str, object]:
    return {"method": {"name": "lora", "rank": rank, "alpha": 5, "targets": ["q", "v"], **options}}


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"bias": "all"}, {"ranks": {"v": 3}}, {"init": "pissa"}])
def test_the_rank_is_the_nearest_whatever_else_is_trained(
    tmp_path: Path, tiny: Tiny, options: dict[str, object]
) -> None:
    def recipe(rank: int) -> Recipe:
        return small_recipe(tmp_path, tiny("bert"), **one_rank(rank, **options))

    counts = {rank: counted(recipe(rank)) for rank in range(1, 9)}
    sizes = {rank: found.parameters for rank, found in counts.items()}
    for budget in range(sizes[2], sizes[7], 97):
        found = within(recipe(1), budget, lambda made: counts[rank_of(made) or 0])
        rank = rank_of(found)
        assert rank is not None
        assert abs(sizes[rank] - budget) == min(abs(size - budget) for size in sizes.values())
        assert found.method[0].model_dump() == recipe(rank).method[0].model_dump(), "alpha is the recipe's"


def test_a_budget_that_no_rank_comes_near(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), **one_rank(1))  # 2 layers, q and v of 64 x 64: 512 a rank
    assert counted(recipe) == Counts(512, 64)
    with pytest.raises(RecipeError, match="nearest to 300 is rank 1 with 512 parameters, which is 71% away"):
        within(recipe, 300)
    with pytest.raises(RecipeError, match="nearest to 100,000 is rank 64 with 32,768 parameters"):
        within(recipe, 100_000)
    assert rank_of(within(recipe, 410)) == 1
    halved = small_recipe(tmp_path, tiny("bert"), **one_rank(1, init="pissa"))
    with pytest.raises(RecipeError, match="is rank 32"):
        within(halved, 32_768)
    with pytest.raises(RecipeError, match="none left to choose"):
        within(small_recipe(tmp_path, tiny("bert"), **one_rank(1, ranks={"*": 2})), 1000)
    with pytest.raises(RecipeError, match="--budget: bitfit has no rank"):
        bitfit = {"name": "bitfit", "rank": "absent", "alpha": "absent"}
        within(small_recipe(tmp_path, tiny("bert"), method=bitfit), 1000)

import json
from pathlib import Path

import pytest
import torch
from shipped import RECIPES, in_turn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import architecture
from lorakit.checkpoint import head_of
from lorakit.configs import CONFIGS
from lorakit.model import attach
from lorakit.modules import parameter_groups
from lorakit.outline import outline
from lorakit.progress import Silent
from lorakit.recipe import Recipe, dump, json_schema, load
from lorakit.smoke import model_type_of, smoke
from lorakit.surgery import trainable_parameters
from lorakit.trials.settings import Given, recipe_for

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "docs/recipe.schema.json"


def combination(recipe: Recipe) -> tuple[str, ...]:
    """Architecture, methods, task, start and 4 bits of a recipe: what decides which code it runs."""
    methods = "+".join(method.name for method in recipe.method)
    start = "init_from" if recipe.train.init_from else ""
    bits = f"{recipe.model.quantize} {recipe.train.optimizer.name}"
    return (
        model_type_of(recipe.model.base, recipe.model.revision),
        methods,
        recipe.task.name,
        recipe.task.kind,
        start,
        bits,
    )


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 43


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


@pytest.mark.parametrize("file", in_turn(combination))
def test_a_recipe_passes_its_smoke_run(
    file: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no data lies
    found = smoke(load(file), tmp_path / "scratch", tmp_path / "run", Silent())
    assert found["steps"] == 2
    assert (tmp_path / "scratch/merged/config.json").is_file()


@pytest.mark.parametrize(
    ("name", "method", "head"),
    [
        ("roberta_mnli", 294_912, 592_899),
        ("roberta_sst2", 294_912, 592_130),
        ("roberta_stsb", 294_912, 591_361),
        ("roberta_large_mnli", 786_432, 1_052_675),
        ("roberta_large_stsb_houlsby", 786_432, 1_050_625),
        ("deberta_xxl_mnli", 4_718_592, 2_365_443),
        ("deberta_xxl_rte", 4_718_592, 2_363_906),
        ("gpt2_medium_e2e", 393_216, 0),
        ("gpt2_large_e2e", 737_280, 0),
        ("phobert_vsfc_sentiment", 294_912, 592_899),  # 887,811 together
        ("phobert_vsfc_topic", 294_912, 593_668),
        ("llama3_8b_chat", 41_943_040, 0),
    ],
)
def test_trained_parameters_of_the_real_base(name: str, method: int, head: int) -> None:
    """The paper's counts (and its heads, which it leaves out), on models without weights."""
    recipe = load(ROOT / "recipes" / f"{name}.yaml")
    fields = {**CONFIGS[recipe.model.base], **recipe.model.overrides, "num_labels": len(recipe.task.labels)}
    config = AutoConfig.for_model(**fields)
    auto = AutoModelForCausalLM if recipe.task.kind == "generation" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(config)
    row = architecture(config)
    new = [parameter for parameter, _ in model.named_parameters() if parameter.startswith(row.head)]
    attach(model, row, recipe.method, head_of(recipe), new, seed=0)
    sizes = {parameter: tensor.numel() for parameter, tensor in trainable_parameters(model).items()}
    assert sum(size for parameter, size in sizes.items() if ".update." in parameter) == method
    assert sum(size for parameter, size in sizes.items() if ".update." not in parameter) == head


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        (
            "roberta_large_cola_houlsby",  # Table 2's labels: 0.8M, 6.0M, 0.8M, 3.0M
            {"houlsby_0.8m": 835_968, "houlsby_6m": 6_343_680, "pfeiffer_0.8m": 811_392, "pfeiffer_3m": 3_171_840},
        ),
        (
            "roberta_cola",  # FT 125.0M, BitFit 0.1M, AdptD 0.3M and 0.9M
            {
                "full": 124_055_040,
                "bitfit": 102_144,
                "adapter_drop_0.3m": 298_176,
                "adapter_drop_0.9m": 894_528,
            },
        ),
        ("roberta_large_cola", {"full": 354_310_144}),
        ("deberta_xxl_cola", {"full": 1_564_549_632}),  # 1.5669B with the head
        (
            "gpt2_medium_e2e",
            {
                "full": 354_823_168,
                "top_layers": 25_194_496,
                "lin_small": 368_784,
                "lin_wide": 11_089_152,
                "houlsby": 11_064_576,
            },
        ),
        ("gpt2_large_e2e", {"full": 774_030_080, "lin_small": 875_808, "lin_wide": 23_002_848}),
        (
            "llama3_8b_wikisql",  # not GPT-3's counts: those of its blocks
            {
                "lora": 32 * 8 * (2 * 4096 + 4096 + 1024),
                "lora_v2": 32 * 2 * (4096 + 1024),
                "full": 8_030_261_248,
                "preembed": 4096 * 264,
                "prelayer": 32 * 4096 * 16,
                "houlsby_r1": 64 * (2 * 4096 + 1 + 4096),
                "houlsby": 64 * (2 * 4096 * 8 + 8 + 4096),
            },
        ),
    ],
)
def test_the_other_rows_of_the_paper_s_tables(name: str, parameters: dict[str, int]) -> None:
    """Counts of what `compare` trains beside a recipe's own method, without the task's head."""
    file = ROOT / "recipes" / f"{name}.yaml"
    recipe = load(file)
    given = Given(file, (), recipe, decoder="roberta" not in name)
    for method, count in parameters.items():
        made = recipe_for(given, method, seed=0)
        found = outline(made, on_cuda=False)
        heads = () if recipe.task.kind == "generation" else found.row.head
        assert parameter_groups(found.model, heads)["method"] == count, method


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_name_of_the_map_makes_a_recipe(file: Path) -> None:
    recipe = load(file)
    for name, own in recipe.methods.items():
        made = recipe_for(Given(file, (), recipe, decoder=True), name, seed=0)
        assert own.lr in (None, made.train.lr)
        assert made.methods == {}


def test_the_schema_beside_the_docs_is_the_one_that_checks() -> None:
    if not SCHEMA.is_file():
        pytest.skip("docs/recipe.schema.json is not there: make docs")
    assert json.loads(SCHEMA.read_text()) == json_schema(), "out of date: make docs"

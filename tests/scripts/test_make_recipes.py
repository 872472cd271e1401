"""The recipes of a table, and the page of all recipes, are those that the script writes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lorakit.recipe import Recipe, load

ROOT = Path(__file__).resolve().parents[2]
AGAIN = "run `make recipes`"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_recipes", ROOT / "scripts" / "make_recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_current() -> None:
    made = script().recipes()
    assert len(made) == 8 + 8 + 8 + 8 + 2 + 3 + 3 + 3
    for name, text in made.items():
        assert (ROOT / "recipes" / name).read_text() == text, f"{name}: {AGAIN}"


def test_the_page_is_current() -> None:
    docs = (ROOT / "docs" / "recipes.md").read_text()
    assert script().page(docs, script().shipped(ROOT / "recipes")) == docs, AGAIN
    for file in (ROOT / "recipes").glob("*.yaml"):
        assert docs.count(f"(../recipes/{file.name})") == 1, AGAIN


# The tables of the published scripts, per GPU: written down apart from the script's, to be compared with its files.
SCRIPTS = """
family,task,gpu,world,epochs,lr,alpha,length,from_mnli
roberta,mnli,16,8,30,5e-4,16,512,0
roberta,sst2,16,8,60,5e-4,16,512,0
roberta,mrpc,16,8,30,4e-4,16,512,1
roberta,cola,32,2,80,4e-4,16,512,0
roberta,qnli,32,8,25,4e-4,16,512,0
roberta,qqp,16,8,25,5e-4,16,512,0
roberta,rte,32,8,80,5e-4,16,512,1
roberta,stsb,16,8,40,4e-4,16,512,1
roberta_large,mnli,4,8,10,3e-4,16,128,0
roberta_large,sst2,8,8,10,4e-4,16,512,0
roberta_large,mrpc,4,8,20,3e-4,16,512,1
roberta_large,cola,4,8,20,3e-4,16,128,0
roberta_large,qnli,4,8,10,2e-4,16,512,0
roberta_large,qqp,4,8,20,3e-4,16,512,0
roberta_large,rte,8,8,20,4e-4,16,512,1
roberta_large,stsb,4,8,10,3e-4,16,128,1
deberta_xxl,mnli,8,8,5,1e-4,32,256,0
deberta_xxl,sst2,8,8,16,6e-5,32,128,0
deberta_xxl,mrpc,32,8,30,2e-4,32,128,1
deberta_xxl,cola,4,8,10,1.3e-4,32,64,0
deberta_xxl,qnli,6,8,8,1e-4,32,512,0
deberta_xxl,qqp,8,8,11,1e-4,32,320,0
deberta_xxl,rte,4,8,11,2.6e-4,32,320,1
deberta_xxl,stsb,4,8,10,2e-4,32,128,1
"""
LINES = [line.split(",") for line in SCRIPTS.strip().splitlines()[1:]]
ORDER = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
TABLE_2 = {
    "roberta_{}": "87.5±.3,95.1±.2,89.7±.7,63.4±1.2,93.3±.3,90.8±.1,86.6±.7,91.5±.2",
    "roberta_large_{}": "90.6±.2,96.2±.5,90.9±1.2,68.2±1.9,94.9±.3,91.6±.1,87.4±2.5,92.6±.2",
    "roberta_large_{}_houlsby": "90.6±.2,96.2±.5,90.2±1.0,68.2±1.9,94.8±.3,91.6±.2,85.2±1.1,92.3±.5",
    "deberta_xxl_{}": "91.9±.2,96.9±.2,92.6±.6,72.4±1.1,96.0±.1,92.9±.1,94.9±.4,93.0±.2",
}


def recipe(name: str) -> Recipe:
    return load(ROOT / "recipes" / f"{name}.yaml")


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line[0]}-{line[1]}")
def test_values_of_the_published_scripts(line: list[str]) -> None:
    family, task, gpu, world, epochs, lr, alpha, length, from_mnli = line
    found = recipe(f"{family}_{task}")
    (method,) = found.method
    deberta = family == "deberta_xxl"
    values = method.model_dump()
    assert (values["rank"], values["alpha"], values["targets"]) == (16 if deberta else 8, float(alpha), ["q", "v"])
    assert values["init"] == ("gaussian" if deberta else "kaiming")
    assert (found.train.batch_size, found.train.epochs) == (int(gpu) * int(world), int(epochs))
    assert (found.train.lr, found.task.max_length) == (float(lr), int(length))
    start = found.train.init_from
    expected = (f"runs/{family}_mnli", "keep_matching" if deberta else "drop") if from_mnli == "1" else None
    assert (None if start is None else (start.run, start.head)) == expected
    if start is not None:
        assert recipe(f"{family}_mnli").method == found.method, "else it would be refused"
        assert recipe(f"{family}_mnli").model.base == found.model.base


@pytest.mark.parametrize(("name", "numbers"), TABLE_2.items())
def test_numbers_of_table_2(name: str, numbers: str) -> None:
    for task, number in zip(ORDER, numbers.split(","), strict=True):
        value, std = map(float, number.split("±"))
        found = recipe(name.format(task)).paper
        assert found is not None and found.tolerance is not None
        assert (found.value, found.std) == (value, std)
        assert found.metric == {"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy")
        assert found.tolerance == pytest.approx(max(0.4, 2 * std))


def test_the_restricted_setup() -> None:
    epochs, lr = [10, 10, 20, 20, 10, 20, 20, 10], [3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4]
    for i, task in enumerate(ORDER):
        found = recipe(f"roberta_large_{task}_houlsby")
        assert (found.train.epochs, found.train.lr, found.train.batch_size) == (epochs[i], lr[i], 32)
        assert (found.task.max_length, found.train.init_from) == (128, None)


def test_deberta_has_its_own_dropout_decay_warmup_and_evaluations() -> None:
    dropout, decay = [0.15, 0, 0, 0.1, 0.1, 0.2, 0.2, 0.2], [0, 0.01, 0.01, 0, 0.01, 0.01, 0.01, 0.1]
    warmup, every = [1000, 1000, 0.1, 100, 500, 10000, 50, 100], [500, 100, 10, 20, 500, 500, 20, 50]
    for i, task in enumerate(ORDER):
        found = recipe(f"deberta_xxl_{task}")
        assert found.model.overrides == {"cls_dropout": dropout[i]}
        assert found.train.warmup is not None
        assert (found.train.warmup.steps or found.train.warmup.ratio) == warmup[i]
        assert (found.train.weight_decay, found.train.eval_every) == (decay[i], every[i])


@pytest.mark.parametrize("size", ["medium", "large"])
def test_gpt2(size: str) -> None:
    found = recipe(f"gpt2_{size}_e2e")
    assert found.model.overrides == dict.fromkeys(["attn_pdrop", "embd_pdrop", "resid_pdrop"], 0.0)
    train = found.train
    assert (train.epochs, train.batch_size, train.lr, train.optimizer.eps) == (5, 8, 2e-4, 1e-6)
    assert train.warmup is not None
    assert (train.warmup.steps, train.max_grad_norm, train.label_smoothing) == (500, None, 0.1)
    assert found.paper is not None
    assert (found.paper.value, found.paper.std, found.paper.tolerance) == (70.4, 0.1, 1.9)
    assert found.generate is not None
    assert (found.generate.beams, found.generate.length_penalty, found.generate.no_repeat_ngram) == (10, 0.9, 4)


@pytest.mark.parametrize("base", ["smollm2", "llama3_8b"])
@pytest.mark.parametrize(
    ("task", "length", "value"), [("wikisql", 384, 74.0), ("mnli", 768, 91.6), ("samsum", 2048, 53.4)]
)
def test_the_setup_of_gpt3(base: str, task: str, length: int, value: float) -> None:
    """Appendix D.4, table 12; LoRA with 37.7M parameters in table 4."""
    found = recipe(f"{base}_{task}")
    train, (method,) = found.train, found.method
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (2, 128, 2e-4, 0.1)
    assert train.warmup is not None and (train.warmup.tokens, train.schedule) == (250_000, "linear")
    assert (method.model_dump()["rank"], method.model_dump()["targets"]) == (8, ["q", "v"])
    assert (found.task.max_length, found.task.kind) == (length, "classification" if task == "mnli" else "generation")
    assert found.task.head == "generation"
    assert found.paper is not None
    assert (found.paper.source, found.paper.value, found.paper.tolerance) == ("Table 4", value, None)

"""Recipes: what loads, what is refused and in which words, and that dumps and the JSON schema agree with both."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from lorakit import yamltree
from lorakit.errors import RecipeError
from lorakit.methods import METHODS
from lorakit.methods.lora import LoRA
from lorakit.recipe import Generate, Misfit, Paper, Recipe, Schema, dump, json_schema, load, union
from lorakit.schedule import Optimizer, Train, Warmup
from lorakit.section import Section
from lorakit.tasks import TASKS

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
GLUE = """\
model:
  base: FacebookAI/roberta-base
method:
  name: lora
task:
  name: glue
  subset: mnli
train:
  epochs: 3
  batch_size: 32
  lr: 5e-4
"""
E2E = GLUE.replace("name: glue\n  subset: mnli", "name: e2e")
TRAIN_KEYS = (
    "epochs, steps, batch_size, micro_batch_size, optimizer, lr, schedule, warmup, weight_decay, max_grad_norm, "
    "precision, gradient_checkpointing, label_smoothing, head_bias, seed, eval_every, save_every, select, eval_limit, "
    "patience, parallel, init_from, track"
)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, *overrides: str) -> Recipe:
    """Load a recipe's text from r.yaml in the current folder."""
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load("r.yaml", overrides)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(text, *overrides)
    return list(caught.value.problems)


pytestmark = pytest.mark.usefixtures("in_folder")


def test_the_smallest_recipe_and_its_defaults() -> None:
    recipe = read(GLUE)
    assert recipe.name == "r"
    assert recipe.model.base == "FacebookAI/roberta-base"
    assert recipe.method == [LoRA()]
    assert recipe.task == TASKS["glue"].model_validate({"subset": "mnli"})
    assert recipe.train == Train(
        epochs=3,
        steps=None,
        batch_size=32,
        micro_batch_size="auto",
        optimizer=Optimizer(name="adamw", betas=(0.9, 0.999), eps=1e-8),
        lr=5e-4,
        schedule="linear",
        warmup=Warmup(ratio=0.06),
        weight_decay=0.1,
        max_grad_norm=1.0,
        precision="auto",
        gradient_checkpointing=False,
        label_smoothing=0.0,
        head_bias="zero",
        seed=0,
        eval_every="epoch",
        save_every="epoch",
        select=None,
        eval_limit=None,
        patience=None,
        parallel="ddp",
        init_from=None,
        track=[],
    )
    assert recipe.generate is None
    assert recipe.paper is None


def test_where_the_task_generates_so_does_the_recipe() -> None:
    expected = Generate(beams=1, length_penalty=1.0, no_repeat_ngram=0, max_new_tokens=64, stop=[])
    assert read(E2E).generate == read(E2E, "generate=").generate == expected
    assert read(E2E, "generate.stop=['\\n']").generate == Generate(stop=["\\n"])


def test_everything_is_frozen() -> None:
    recipe = read(E2E)
    for section, key in (
        (recipe, "name"),
        (recipe.train, "lr"),
        (recipe.train.optimizer, "eps"),
        (recipe.generate, "stop"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, None)


def test_methods_may_be_a_list() -> None:
    recipe = read(GLUE, "method=[{name: lora, rank: 2}, {name: prelayer}]")
    assert [method.name for method in recipe.method] == ["lora", "prelayer"]
    assert [section["name"] for section in yaml.safe_load(dump(recipe))["method"]] == ["lora", "prelayer"]
    assert yaml.safe_load(dump(read(GLUE)))["method"]["name"] == "lora"


def test_sections_can_be_built_in_python() -> None:
    recipe = read(GLUE)
    built = Recipe(name="r", model=recipe.model, method=[LoRA()], task=recipe.task, train=recipe.train)
    assert built == recipe
    with pytest.raises(ValidationError, match="greedy decoding has one text to choose from"):
        Generate(length_penalty=0.9)
    with pytest.raises(ValidationError, match="select: got"):
        Recipe(
            name="r",
            model=recipe.model,
            method=[LoRA()],
            task=recipe.task,
            train=Train(epochs=1, batch_size=1, lr=1, select="x"),
        )
    assert str(Misfit({("a", 0): "x", (): "y"})) == "a.0: x; y"


@pytest.mark.parametrize(
    ("override", "pick", "value"),
    [
        ("train.lr=1", lambda r: r.train.lr, 1.0),
        ("train.warmup=", lambda r: r.train.warmup, None),
        ("train.warmup={steps: 0}", lambda r: r.train.warmup, Warmup(steps=0)),
        ("train.warmup={tokens: 250000}", lambda r: r.train.warmup, Warmup(tokens=250_000)),
        ("train.max_grad_norm=null", lambda r: r.train.max_grad_norm, None),
        ("train.optimizer={eps: 1e-6}", lambda r: r.train.optimizer, Optimizer(eps=1e-6)),
        ("train.optimizer.betas=[0, 0.95]", lambda r: r.train.optimizer.betas, (0.0, 0.95)),
        ("train.micro_batch_size=32", lambda r: r.train.micro_batch_size, 32),
        ("train.eval_every=100", lambda r: r.train.eval_every, 100),
        ("train.select=last", lambda r: r.train.select, "last"),
        ("train.select=loss", lambda r: r.train.select, "loss"),
        ("train.select=accuracy", lambda r: r.train.select, "accuracy"),
        ("method.rank=4", lambda r: r.method[0].rank, 4),
        ("task.limit={train: 2000}", lambda r: r.task.limit, {"train": 2000}),
        ("task.limit.validation=5", lambda r: r.task.limit, {"validation": 5}),
        (
            "model.overrides={a: 1, b: 0.0, c: on, d: true}",
            lambda r: r.model.overrides,
            dict(a=1, b=0.0, c="on", d=True),
        ),
        ("name=a-b_c.1", lambda r: r.name, "a-b_c.1"),
        ("name=", lambda r: r.name, "r"),
        ("model.revision='1e5'", lambda r: r.model.revision, "1e5"),  # without the quotes it is a number
    ],
)
def test_overrides(override: str, pick: Any, value: Any) -> None:
    found = pick(read(GLUE, override))
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_counts() -> None:
    assert read(GLUE, "train.lr=1", "train.lr=2").train.lr == 2


def test_overrides_may_set_what_the_other_needs() -> None:
    assert read(GLUE, "train.epochs=", "train.steps=10").train.steps == 10


NAMES = '"lora", "full", "top_layers", "bitfit", "adapter", "preembed", "prelayer" or "prefix_kv"'

BAD: list[tuple[str, str, list[str]]] = [
    # mistyped keys, at each level
    (
        "modle: {}\n" + GLUE,
        "",
        [
            'r.yaml:1: modle: unknown key; did you mean "model"? '
            "allowed: name, model, method, task, train, generate, paper, methods"
        ],
    ),
    (GLUE.replace("lr:", "lrr:"), "", [f'r.yaml:11: train.lrr: unknown key; did you mean "lr"? allowed: {TRAIN_KEYS}']),
    (GLUE + "  xyzzy: 1\n", "", [f"r.yaml:12: train.xyzzy: unknown key; allowed: {TRAIN_KEYS}"]),
    (
        GLUE + "  optimizer:\n    beta: [0.9, 0.98]\n",
        "",
        ['r.yaml:13: train.optimizer.beta: unknown key; did you mean "betas"? allowed: name, betas, eps, lr_b_ratio'],
    ),
    (
        GLUE + "  warmup:\n    step: 5\n",
        "",
        ['r.yaml:13: train.warmup.step: unknown key; did you mean "steps"? allowed: ratio, steps, tokens'],
    ),
    (
        GLUE.replace("  base:", "  bsae:"),
        "",
        [
            'r.yaml:2: model.bsae: unknown key; did you mean "base"? '
            "allowed: base, revision, dtype, quantize, overrides, trust_remote_code"
        ],
    ),
    (
        GLUE.replace("subset: mnli", "subset: mnli\n  limit: {trian: 5}"),
        "",
        [
            'r.yaml:8: task.limit.trian: unknown key; did you mean "train"? '
            "allowed: train, validation, validation_mismatched, test, test_mismatched, diagnostic"
        ],
    ),
    (
        E2E + "generate:\n  beam: 1\n",
        "",
        [
            'r.yaml:12: generate.beam: unknown key; did you mean "beams"? '
            "allowed: beams, length_penalty, no_repeat_ngram, max_new_tokens, stop"
        ],
    ),
    # keys that come with later versions
    *[
        (GLUE + f"  {key}\n", "", [f"r.yaml:12: train.{key.split(':')[0]}: unknown key; allowed: {TRAIN_KEYS}"])
        for key in ("quantize: nf4", "methods: {}")
    ],
    # mistyped values
    (
        GLUE + "  schedule: cosin\n",
        "",
        ['r.yaml:12: train.schedule: got "cosin"; did you mean "cosine"? allowed: "linear", "cosine" or "constant"'],
    ),
    (
        GLUE + "  precision: BF16\n",
        "",
        [
            'r.yaml:12: train.precision: got "BF16"; did you mean "bfloat16"? '
            'allowed: "auto", "float32", "bfloat16" or "float16"'
        ],
    ),
    (
        GLUE + "  optimizer: {name: adamw8bits}\n",
        "",
        [
            'r.yaml:12: train.optimizer.name: got "adamw8bits"; did you mean "adamw8bit"? '
            'allowed: "adamw" or "adamw8bit"'
        ],
    ),
    (
        GLUE + "  eval_every: epok\n",
        "",
        ['r.yaml:12: train.eval_every: got "epok"; did you mean "epoch"? allowed: "epoch" or a whole number > 0'],
    ),
    (
        GLUE + "  select: acuracy\n",
        "",
        ['r.yaml:12: train.select: got "acuracy"; did you mean "accuracy"? allowed: "accuracy", "loss" or "last"'],
    ),
    (
        GLUE + "paper: {source: Table 2, metric: acc, value: 87.5}\n",
        "",
        ['r.yaml:12: paper.metric: got "acc"; allowed: "accuracy" or "loss"'],
    ),
    (
        GLUE + "paper: {source: T, metric: accuracy, value: 9, split: tset, others: {acc: 1}}\n",
        "methods.full.paper={value: 9, others: {f2: 1}}",
        [
            'r.yaml:12: paper.others.acc: got "acc"; allowed: "accuracy" or "loss"',
            'r.yaml:12: paper.split: got "tset"; did you mean "test"? allowed: "train", "validation", '
            '"validation_mismatched", "test", "test_mismatched" or "diagnostic"',
            'command line: methods.full.paper.others.f2: got "f2"; allowed: "accuracy" or "loss"',
        ],
    ),
    (
        GLUE + "methods: {full: {init_from: bse}}\n",
        "",
        ['r.yaml:12: methods.full.init_from: got "bse"; did you mean "base"? allowed: a mapping, "base" or null'],
    ),
    # wrong types of every scalar kind
    (GLUE, "method.rank=true", ["command line: method.rank: got true; allowed: a whole number > 0"]),
    (GLUE, 'method.rank="8"', ['command line: method.rank: got "8"; allowed: a whole number > 0']),
    (GLUE, "method.rank=8.0", ["command line: method.rank: got 8.0; allowed: a whole number > 0"]),
    (GLUE, "method.rank=0", ["command line: method.rank: got 0; allowed: a whole number > 0"]),
    (GLUE, "train.lr='5e-4'", ['command line: train.lr: got "5e-4"; allowed: a number > 0']),
    (GLUE, "train.lr=true", ["command line: train.lr: got true; allowed: a number > 0"]),
    (GLUE, "train.lr=", ["command line: train.lr: got null; allowed: a number > 0"]),
    (
        GLUE,
        "train.gradient_checkpointing=1",
        ["command line: train.gradient_checkpointing: got 1; allowed: true or false"],
    ),
    (
        GLUE,
        "train.gradient_checkpointing=yes",
        ['command line: train.gradient_checkpointing: got "yes"; allowed: true or false'],
    ),
    (GLUE, "model.base=3", ["command line: model.base: got 3; allowed: text"]),
    (GLUE, "model.revision=1e5", ["command line: model.revision: got 100000.0; allowed: text or null"]),
    (
        GLUE,
        "model.overrides.x=[1]",
        ["command line: model.overrides.x: got [1]; allowed: true or false, a whole number, a number or text"],
    ),
    (GLUE, "train=adamw", ['command line: train: got "adamw"; allowed: a mapping']),
    (GLUE, "train.seed=-1", ["command line: train.seed: got -1; allowed: a whole number >= 0 and < 4294967296"]),
    (
        GLUE,
        "train.label_smoothing=1.0",
        ["command line: train.label_smoothing: got 1.0; allowed: a number >= 0 and < 1"],
    ),
    (
        GLUE,
        "train.optimizer.betas=[0.9]",
        ["command line: train.optimizer.betas: got [0.9]; allowed: a list of 2 (each: a number >= 0 and < 1)"],
    ),
    (
        GLUE,
        "train.optimizer.betas=[0.9, 1]",
        ["command line: train.optimizer.betas.1: got 1; allowed: a number >= 0 and < 1"],
    ),
    (
        GLUE,
        "method.targets=[q, 3]",
        ["command line: method.targets.1: got 3; allowed: text"],
    ),
    (
        GLUE,
        "name=../x",
        [
            'command line: name: got "../x"; '
            "allowed: text of at most 100 characters that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$"
        ],
    ),
    # the names that choose a section
    (
        GLUE.replace("name: lora", "name: lroa\n  rnak: 8"),
        "",
        ['r.yaml:4: method.name: got "lroa"; did you mean "lora"? allowed: ' + NAMES],
    ),
    (GLUE, "method=[{name: x}]", ['command line: method.0.name: got "x"; allowed: ' + NAMES]),
    (GLUE, "method.name=", ["command line: method.name: got null; allowed: " + NAMES]),
    (
        GLUE.replace("name: lora", "rank: 8"),
        "",
        ["r.yaml:3: method.name: missing; allowed: " + NAMES],
    ),
    (
        GLUE,
        "method=lora",
        [
            'command line: method: got "lora"; allowed: {name: lora, ...} '
            "or a list of at least 1 (each: {name: lora, ...})"
        ],
    ),
    (GLUE, "method=[lora]", ['command line: method.0: got "lora"; allowed: {name: lora, ...}']),
    # missing keys
    (
        GLUE.replace("  lr: 5e-4\n", "").replace("  batch_size: 32\n", ""),
        "",
        [
            "r.yaml:8: train.batch_size: missing; this key is required",
            "r.yaml:8: train.lr: missing; this key is required",
        ],
    ),
    (
        "name: x\n",
        "",
        [f"r.yaml:1: {key}: missing; this key is required" for key in ("model", "method", "task", "train")],
    ),
    # values that do not go together
    (
        GLUE + "  steps: 5\n",
        "",
        ["r.yaml:12: train.steps: epochs and steps are both given; keep one and set the other to null"],
    ),
    (GLUE.replace("  epochs: 3\n", ""), "", ["r.yaml:8: train: give either epochs or steps"]),
    (
        GLUE + "  micro_batch_size: 64\n",
        "",
        [
            "r.yaml:12: train.micro_batch_size: 64 is more than the 32 of batch_size; give 32 or less, or auto",
        ],
    ),
    (
        GLUE,
        "train.warmup={ratio: 0.1, steps: 5}",
        [
            "command line: train.warmup: give exactly one of ratio, steps and tokens, as in {steps: 500}; "
            "got ratio and steps"
        ],
    ),
    (
        GLUE,
        "train.warmup={}",
        ["command line: train.warmup: give exactly one of ratio, steps and tokens, as in {steps: 500}; got none"],
    ),
    (
        GLUE.replace("epochs: 3", "select: last\n  patience: 2\n  epochs: 3"),
        "",
        [
            "r.yaml:10: train.patience: select is last, so nothing is compared; "
            "select the loss or a metric, or set this to null"
        ],
    ),
    (
        GLUE.replace("model:\n", "model:\n  dtype: bfloat16\n") + "  precision: float32\n",
        "",
        [
            "r.yaml:13: train.precision: float32 gains nothing from a base rounded to bfloat16; "
            "set model.dtype to float32, or train.precision to bfloat16 or auto"
        ],
    ),
    (
        GLUE.replace("mnli", "stsb") + "  label_smoothing: 0.1\n",
        "",
        ["r.yaml:12: train.label_smoothing: a regression task has no classes to smooth; set it to 0"],
    ),
    (
        GLUE + "  head_bias: mean\n",
        "",
        ["r.yaml:12: train.head_bias: glue (classification) has no scores to take the mean of; set it to zero"],
    ),
    (
        GLUE + "generate:\n  max_new_tokens: 5\n",
        "",
        ["r.yaml:12: generate: the task glue (classification) generates no text; remove this section"],
    ),
    (
        E2E,
        "generate.length_penalty=0.9",
        [
            "command line: generate.length_penalty: greedy decoding has one text to choose from: "
            "set beams to 2 or more, or remove this"
        ],
    ),
    # overrides
    (GLUE, "train.lr", ['command line: "train.lr" is no key=value, such as train.lr=1e-4']),
    (GLUE, "=1", ['command line: "=1" is no key=value, such as train.lr=1e-4']),
    (GLUE, "train..lr=1", ['command line: "train..lr=1" is no key=value, such as train.lr=1e-4']),
    (GLUE, "train.l\nr=1", ['command line: "train.l\\nr=1" is no key=value, such as train.lr=1e-4']),
    (GLUE, "train.lrr=1", [f'command line: train.lrr: unknown key; did you mean "lr"? allowed: {TRAIN_KEYS}']),
    (
        GLUE,
        "a.b=1",
        ["command line: a: unknown key; allowed: name, model, method, task, train, generate, paper, methods"],
    ),
    (GLUE, "train.lr.x=1", ["command line: train.lr.x: train.lr is 0.0005, which has no keys"]),
    (GLUE, "train.lr=[", ["command line: train.lr: not YAML: expected the node content, but found '<stream end>'"]),
    (
        GLUE.replace("  name: lora", "  - name: lora"),
        "method.rank=4",
        ["command line: method.rank: method is a list of 1; name an item of it, method.0 to method.0"],
    ),
    # YAML itself
    (GLUE + "  lr: 1e-3\n", "", ["r.yaml:12: train.lr: given twice, on lines 11 and 12; keep one"]),
    # several at once, in the order of the file
    (
        GLUE.replace("name: lora", "name: lora\n  rank: eight") + "  warm_up: null\n",
        "",
        [
            'r.yaml:5: method.rank: got "eight"; allowed: a whole number > 0',
            f'r.yaml:13: train.warm_up: unknown key; did you mean "warmup"? allowed: {TRAIN_KEYS}',
        ],
    ),
    (
        GLUE.replace("epochs: 3", "epochs: 3\n  steps: 3").replace("lr:", "lrr:").replace("base: ", "base: 1 #"),
        "method.init=gauss",
        [
            "r.yaml:2: model.base: got 1; allowed: text",
            "r.yaml:10: train.steps: epochs and steps are both given; keep one and set the other to null",
            f'r.yaml:12: train.lrr: unknown key; did you mean "lr"? allowed: {TRAIN_KEYS}',
            'command line: method.init: got "gauss"; did you mean "gaussian"? '
            'allowed: "kaiming", "gaussian" or "pissa"',
        ],
    ),
    (
        GLUE + "  select: f1\n  label_smoothing: 0.2\ngenerate: {}\n",
        "task.subset=stsb",
        [
            'r.yaml:12: train.select: got "f1"; allowed: "pearson", "spearman", "loss" or "last"',
            "r.yaml:13: train.label_smoothing: a regression task has no classes to smooth; set it to 0",
            "r.yaml:14: generate: the task glue (regression) generates no text; remove this section",
        ],
    ),
]


@pytest.mark.parametrize(("text", "override", "expected"), BAD, ids=[case[2][0][:60] for case in BAD])
def test_what_is_wrong_with_a_recipe(text: str, override: str, expected: list[str]) -> None:
    assert problems(text, *([override] if override else [])) == expected


def test_problems_of_overrides_come_with_those_of_the_file() -> None:
    assert problems(GLUE.replace("5e-4", "fast"), "train.lr.x=1", "y") == [
        'command line: train.lr.x: train.lr is "fast", which has no keys',
        'command line: "y" is no key=value, such as train.lr=1e-4',
        'r.yaml:11: train.lr: got "fast"; allowed: a number > 0',
    ]


def test_names_of_files_that_make_no_name() -> None:
    Path("my recipe.yaml").write_text(GLUE, encoding="utf-8")
    with pytest.raises(RecipeError, match=r'my recipe.yaml:1: name: got "my recipe"'):
        load("my recipe.yaml")
    assert load("my recipe.yaml", ["name=mine"]).name == "mine"


def test_a_task_with_a_method_s_name_as_key_is_told_apart() -> None:
    # pydantic puts the chosen member's name into the path of an error; it must not be taken for a key of the file.
    (found,) = [
        p for p in problems(GLUE.replace("name: lora", "name: lora\n  lora: {rank: 1}\n  rank: x")) if "rank:" in p
    ]
    assert found == 'r.yaml:6: method.rank: got "x"; allowed: a whole number > 0'


# --- every key of every section, walked along the schema ---


TASK_SECTIONS: dict[str, dict[str, Any]] = {
    "glue": {"name": "glue", "subset": "mnli"},
    "e2e": {"name": "e2e"},
    "wikisql": {"name": "wikisql"},
    "samsum": {"name": "samsum"},
    "vsfc": {"name": "vsfc", "subset": "sentiment"},
    "custom": {"name": "custom", "kind": "chat", "train": "train.jsonl"},
    "imported": {"name": "imported", "kind": "classification", "labels": ["no", "yes"]},
}


def documents() -> dict[str, dict[str, Any]]:
    """A recipe for every method and for every task, with the required keys."""
    assert set(TASK_SECTIONS) == set(TASKS), "a new task: give its required keys above"
    found = {}
    for task, section in TASK_SECTIONS.items():
        for method in METHODS:
            data = yamltree.parse(GLUE.encode(), "r.yaml").data
            found[f"{task}-{method}"] = data | {"task": section, "method": {"name": method}}
    return found


def keys(node: Schema, root: Schema, data: dict[str, Any], path: yamltree.Path = ()) -> Iterator[yamltree.Path]:
    """Paths of all keys that the schema has for this recipe's method and task."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    for option in node.get("anyOf", node.get("oneOf", [])):
        yield from keys(option, root, data, path)
    name = node.get("properties", {}).get("name", {}).get("const")
    if path and path[0] in ("method", "task") and name not in (None, data[str(path[0])]["name"]):
        return
    for key, child in node.get("properties", {}).items():
        yield (*path, key)
        yield from keys(child, root, data, (*path, key))


@pytest.mark.parametrize("data", documents().values(), ids=documents())
def test_every_key_is_checked(data: dict[str, Any]) -> None:
    paths = sorted(set(keys(json_schema(), json_schema(), data)), key=str)
    assert len(paths) > 40
    text = yamltree.render(data)
    for path in map(yamltree.dotted, paths):
        # No key takes a list of lists of mappings. What is wrong is the key, or the items of a list.
        found = problems(text, f'{path}=[[{{"wrong": "type"}}]]')
        refused = re.compile(rf"command line: {re.escape(path)}(\.0)*: got ")
        assert any(map(refused.match, found)), (path, found)
    sections = {path[:-1] for path in paths}
    for section in sections:
        key = yamltree.dotted((*section, "no_such_key"))
        assert any(f"{key}: unknown key" in problem for problem in problems(text, f"{key}=1")), key


def test_the_dump_holds_every_key_of_the_schema() -> None:
    recipe = read(E2E, "paper={source: x, metric: bleu, value: 1}", "train.init_from={run: x}")
    data = yamltree.parse(dump(recipe).encode(), "dump")
    held = {path for path in data.places if path and all(isinstance(part, str) for part in path)}
    assert held == set(keys(json_schema(), json_schema(), data.data))


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
everywhere = [(data, path) for data in documents().values() for path in keys(json_schema(), json_schema(), data)]


@settings(database=None, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(everywhere), anything)
def test_any_value_at_any_key_loads_or_is_refused(at: tuple[dict[str, Any], yamltree.Path], value: Any) -> None:
    data, path = at
    try:
        recipe = read(yamltree.render(data), f"{yamltree.dotted(path)}={json.dumps(value)}")
    except RecipeError as error:
        assert all("\n" not in problem and problem.isprintable() for problem in error.problems)
    else:
        assert read(dump(recipe)) == recipe


# --- shipped recipes ---


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_dump(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert recipe.name == path.stem
    copy = tmp_path / "other_name.yaml"
    copy.write_text(dump(recipe), encoding="utf-8")
    assert load(copy) == recipe
    assert dump(load(copy)) == dump(recipe)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_point_to_the_schema_and_say_what_they_do(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../docs/recipe.schema.json"
    head = list(itertools.takewhile(lambda line: line.startswith("# "), lines))
    assert len(head) > 2
    assert f"lorakit train recipes/{path.name}" in head[-1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_match_the_schema(path: Path) -> None:
    root = json_schema()
    for data in (yamltree.read(path).data, yamltree.parse(dump(load(path)).encode(), "dump").data):
        assert complaints(data, root, root) == []


def test_the_paper_s_recipes() -> None:
    mnli = load(next(path for path in RECIPES if path.stem == "roberta_mnli"))
    assert mnli.method == [LoRA(rank=8, alpha=16, dropout=0.0, targets=["q", "v"])]
    assert (mnli.train.lr, mnli.train.batch_size, mnli.train.epochs) == (5e-4, 128, 30)
    assert mnli.train.warmup == Warmup(ratio=0.06)
    assert mnli.paper is not None
    assert (mnli.paper.value, mnli.paper.std) == (87.5, 0.3)
    e2e = load(next(path for path in RECIPES if path.stem == "gpt2_medium_e2e"))
    assert e2e.method == [LoRA(rank=4, alpha=32, dropout=0.1, targets=["q", "v"])]
    assert e2e.train.optimizer == Optimizer(betas=(0.9, 0.999), eps=1e-6)
    assert (e2e.train.lr, e2e.train.weight_decay, e2e.train.max_grad_norm) == (2e-4, 0.01, None)
    assert e2e.generate == Generate(beams=10, length_penalty=0.9, no_repeat_ngram=4, max_new_tokens=64, stop=["\n\n"])
    assert isinstance(e2e.paper, Paper)
    assert e2e.paper.value - (e2e.paper.tolerance or 0) == pytest.approx(68.5)


# --- the JSON schema ---


def test_the_schema_describes_every_key() -> None:
    root = json_schema()
    nodes = {"recipe": root, **root["$defs"]}
    silent = [
        f"{name}.{key}"
        for name, node in nodes.items()
        for key, child in node.get("properties", {}).items()
        if "description" not in child and key != "name"
    ]
    assert silent == []


def test_the_schema_tells_methods_and_tasks_apart_by_name() -> None:
    root = json_schema()
    single, several = root["properties"]["method"]["anyOf"]
    assert single["oneOf"] == several["items"]["oneOf"]
    for options, table in ((single["oneOf"], METHODS), (root["properties"]["task"]["oneOf"], TASKS)):
        sections = [root["$defs"][option["$ref"].rpartition("/")[2]] for option in options]
        assert [section["properties"]["name"]["const"] for section in sections] == list(table)
        assert all(section["required"][0] == "name" for section in sections)
    assert root["required"] == ["model", "method", "task", "train"]
    assert json.loads(json.dumps(root)) == root


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("method.rank='8'", "method"),
        ("method.name=lroa", "method"),
        ("train.lr=0", "train.lr"),
        ("train.lrr=1", "train"),
        ("train.schedule=x", "train.schedule"),
        ("task.limit.trian=1", "task"),
        ("generate.beams=0", "generate"),
    ],
)
def test_the_schema_refuses_what_loading_refuses(override: str, complaint: str) -> None:
    text = GLUE if not override.startswith("generate") else E2E
    problems(text, override)
    tree = yamltree.parse(text.encode(), "r.yaml")
    root = json_schema()
    assert complaints(tree.data, root, root) == []
    key, _, value = override.partition("=")
    tree.assign(key, yamltree.parse_value(value, key))
    assert complaints(tree.data, root, root)[0].startswith(complaint)


KNOWN = {
    *("$schema", "$defs", "$ref", "title", "description", "default", "type", "enum", "const", "anyOf", "oneOf"),
    *("properties", "required", "additionalProperties", "propertyNames", "items", "prefixItems"),
    *("minItems", "maxItems", "minLength", "maxLength", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def complaints(value: Any, node: Schema, root: Schema, path: str = "") -> list[str]:
    """Where a value breaks a schema: a checker for the keywords that our schema uses, and no others."""
    unknown = set(node) - KNOWN
    assert not unknown, f"teach this checker {unknown}"
    if "$ref" in node:
        return complaints(value, root["$defs"][node["$ref"].rpartition("/")[2]], root, path)
    for word, most in (("anyOf", 99), ("oneOf", 1)):
        if word in node:
            good = sum(not complaints(value, option, root, path) for option in node[word])
            return [] if 1 <= good <= most else [f"{path}: {good} of {word}"]
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kind = node.get("type")
    if kind in ("integer", "number"):
        good_type = isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    else:
        good_type = kind is None or isinstance(value, types[kind])
    broken = [] if good_type else [f"{path}: no {kind}"]
    broken += [f"{path}: not in enum"] if "enum" in node and value not in node["enum"] else []
    broken += [f"{path}: not const"] if "const" in node and value != node["const"] else []
    if good_type and kind in ("integer", "number"):
        broken += [f"{path}: too small"] if value < node.get("minimum", value) else []
        broken += [f"{path}: too small"] if value <= node.get("exclusiveMinimum", value - 1) else []
        broken += [f"{path}: too large"] if value > node.get("maximum", value) else []
        broken += [f"{path}: too large"] if value >= node.get("exclusiveMaximum", value + 1) else []
    if isinstance(value, dict) and kind == "object":
        broken += [f"{path}: lacks {key}" for key in node.get("required", []) if key not in value]
        for key, child in value.items():
            below = f"{path}.{key}".lstrip(".")
            inner = node.get("properties", {}).get(key, node.get("additionalProperties", True))
            broken += [f"{path}: has {key}"] if inner is False else []
            broken += complaints(child, inner, root, below) if isinstance(inner, dict) else []
            broken += complaints(key, node["propertyNames"], root, below) if "propertyNames" in node else []
    if isinstance(value, list) and kind == "array":
        fixed = node.get("prefixItems", [])
        broken += (
            [f"{path}: length"] if not node.get("minItems", 0) <= len(value) <= node.get("maxItems", 10**9) else []
        )
        for index, child in enumerate(value):
            inner = fixed[index] if index < len(fixed) else node.get("items", {})
            broken += complaints(child, inner, root, f"{path}.{index}")
    return broken


# --- the unions are built from the tables ---


def test_a_new_section_needs_a_line_in_a_table_only() -> None:
    class One(Section):
        name: Literal["one"] = "one"
        size: int = 0

    class Two(Section):
        name: Literal["two"] = "two"

    holder = create_model("holder", __base__=Section, part=(union({"one": One, "two": Two}), ...))
    assert holder.model_validate({"part": {"name": "one", "size": 3}}).part == One(size=3)
    assert holder.model_validate({"part": Two()}).part == Two()
    with pytest.raises(ValidationError) as caught:
        holder.model_validate({"part": {"name": "tow", "size": "x"}})
    assert caught.value.error_count() == 1


def test_recipe_itself_imports_nothing_heavy() -> None:
    # The methods may import torch; what else a recipe error would wait for must stay out.
    heavy = "transformers", "datasets", "accelerate", "pyarrow", "sklearn", "scipy", "sacrebleu", "pandas"
    code = f"import sys, lorakit.recipe; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

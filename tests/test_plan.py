import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from shipped import in_turn
from small_runs import history, recipe_file, report, run, small_recipe

from lorakit.errors import LorakitError
from lorakit.fit import need_of_rows, rows_that_fit
from lorakit.lengths import Shape
from lorakit.plan import Machine, Plan, make_plan
from lorakit.plan_view import as_json, parse_size, refusals, sentences, tables
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.report import summary_rows

Tiny = Callable[[str], Path]
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared/data"
CPU = Machine(False, 2**40, "for this test")


def planned(file: Path, *overrides: str, machine: Machine = CPU) -> Plan:
    return make_plan(load(file, list(overrides)), machine, Silent())


def shipped(name: str, *overrides: str, machine: Machine = CPU) -> Plan:
    return planned(ROOT / f"recipes/{name}.yaml", *overrides, machine=machine)


def lorakit(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lorakit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def model_and_task(recipe: Recipe) -> tuple[str | None, ...]:
    """What a plan differs by, where time counts."""
    methods = (method.name for method in recipe.method)
    return recipe.model.base, recipe.model.quantize, *methods, recipe.task.name


@pytest.mark.parametrize("file", in_turn(model_and_task))
def test_every_shipped_recipe_can_be_planned_offline(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Where neither the hub nor any data is; a base that is no package is built from the table."""
    monkeypatch.chdir(tmp_path)
    recipe = load(file)
    plan = make_plan(recipe, Machine(False, None, ""), Silent())
    assert plan.phases[0].total > 4 * plan.parameters["trainable"]
    assert plan.steps or not recipe.task.official_rows
    assert all(len(line) <= 100 for table in tables(plan) for line in plain(*table))
    json.dumps(as_json(plan))


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As the command line aligns a table."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *rows)
    ]


def test_the_papers_counts_for_roberta() -> None:
    """PROTOCOL 1.4: 12 layers, q and v, rank 8; MNLI's head has three classes. 6.1: the official rows."""
    plan = shipped("roberta_mnli")
    assert plan.parameters["method"] == 294_912
    assert plan.parameters["head"] == 592_899
    assert plan.adapter == 4 * 887_811
    assert plan.checkpoint == 3 * plan.adapter
    assert [(split.name, split.rows, split.official) for split in plan.splits] == [
        ("train", 392_702, True),
        ("validation", 9_815, True),
        ("validation_mismatched", 9_832, True),
    ]
    assert plan.steps == 30 * -(-392_702 // 128)
    assert plan.bound
    parts = next(phase for phase in plan.phases if phase.name == "training").parts
    assert parts["trained"] == parts["gradients"] == 4 * 887_811
    # RoBERTa-base without its language-model head; a buffer of positions and one of token types lie beside it
    assert parts["weights"] == pytest.approx(4 * (plan.parameters["total"] - 887_811), rel=1e-3)


def test_llama_on_a_gpu_is_bfloat16_as_its_files() -> None:
    plan = shipped("llama3_8b_chat", machine=Machine(True, 24 * 2**30, "--memory"))
    assert (plan.dtype, plan.precision) == ("bfloat16", "bfloat16")
    assert plan.parameters["method"] == 41_943_040
    assert plan.limit.rows == 4  # halved from the 16 of a step
    assert plan.fits


def test_real_rows_are_counted_and_measured(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    plan = make_plan(recipe, CPU, Silent())
    train, validation = plan.splits
    assert (train.rows, validation.rows, train.official, train.dropped, train.truncated) == (20, 10, False, 0, 0)
    assert plan.lengths is not None
    assert train.tokens == plan.lengths.sum()
    assert (plan.steps, plan.epochs, plan.bound, plan.notes) == (6, 2.0, False, [])
    assert plan.padding is not None
    assert 0 <= plan.padding.sorted <= plan.padding.to_max_length


def test_the_plan_agrees_with_the_run(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    plan = make_plan(recipe, CPU, Silent())
    run(recipe, tmp_path / "run")
    found = report(tmp_path / "run")
    assert found["parameters"] == plan.parameters
    assert found["steps"] == plan.steps
    assert found["predicted_memory_bytes"] == plan.phases[0].total
    assert found["memory_in_use_bytes"] > 0
    assert 0 < found["adapter_bytes"] - plan.adapter < 4096  # its header
    assert sum(line["tokens"] for line in history(tmp_path / "run", "log")) == plan.splits[0].tokens * 2  # type: ignore[operator]
    assert found["targets"] == {t: sum(row.adapted for row in plan.modules if t in row.by) for t in found["targets"]}


def test_truncated_rows_are_told(tiny: Tiny, tmp_path: Path) -> None:
    plan = make_plan(small_recipe(tmp_path, tiny("bert"), task={"max_length": 10}), CPU, Silent())
    assert plan.splits[0].truncated == 20
    assert plan.max_length == 10


def test_missing_rows_have_no_invented_count(tiny: Tiny, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny("llama"), "completion")
    (tmp_path / "train.jsonl").unlink()
    plan = planned(file)
    assert plan.splits[0].rows is None
    assert plan.steps is None
    assert "the rows are not on this machine" in plan.notes[0]
    assert "train.jsonl" in plan.notes[1]
    assert planned(file, "train.epochs=null", "train.steps=7").steps == 7


def test_a_decoder_that_is_asked_learns_few_tokens(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither rows nor tokenizer are known, a word is taken to be at most as many tokens as bytes."""
    monkeypatch.chdir(tmp_path)
    task = {"name": "glue", "subset": "mnli", "path": "nowhere", "format": "prompt", "max_length": 60}
    task |= dict.fromkeys(("kind", "train", "validation"), "absent")
    plan = planned(recipe_file(tmp_path, tiny("llama"), task=task))
    assert (plan.splits[0].rows, plan.steps, plan.parameters["head"]) == (392_702, 2 * 49_088, 0)
    largest = plan.phases[0].shape
    assert largest is not None
    assert (largest.width, largest.targets) == (60, largest.rows * (len(" Neither") + 1))


def test_limits_hold_for_official_counts_too() -> None:
    assert shipped("roberta_mnli", "task.limit={train: 1000}").splits[0].rows == 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "overrides"),
    [
        *(("minilm_mrpc", "glue", [f"task.subset={subset}"]) for subset in ("cola", "sst2", "mrpc", "rte", "wnli")),
        ("minilm_stsb", "glue", []),
        ("smollm2_e2e", "e2e", []),
        ("phobert_vsfc_topic", "uit_vsfc", ["task.segment=null"]),
    ],
)
def test_official_counts_are_those_of_the_files(name: str, path: str, overrides: list[str]) -> None:
    if not (DATA / path).is_dir():
        pytest.skip(f"{DATA / path} is not there")
    task = load(ROOT / f"recipes/{name}.yaml", [f"task.path={DATA / path}", *overrides]).task
    found = {split: len(task.load(split).rows) for split in ("train", "validation")}
    assert found == {split: task.official_rows[split] for split in found}


def test_a_report_tells_prediction_beside_measurement(tiny: Tiny, tmp_path: Path) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    rows = dict(summary_rows(report(tmp_path / "run")))
    assert re.fullmatch(r"[\d.]+ [KM]iB measured in use, [\d.]+ [KM]iB predicted", rows["memory above imports"])
    older = {k: v for k, v in report(tmp_path / "run").items() if "memory_" not in k or k == "peak_memory_bytes"}
    assert dict(summary_rows(older))["memory above imports"] == "unknown measured in use, unknown predicted"


def test_an_unknown_base_says_what_to_do() -> None:
    with pytest.raises(LorakitError, match=r"plan downloads nothing: fetch the base first \(hf download no/such\)"):
        shipped("roberta_mnli", "model.base=no/such")


def test_what_does_not_fit_is_refused_with_what_would(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("llama"), "completion", train={"micro_batch_size": 8})
    needed = make_plan(recipe, CPU, Silent()).phases[0].total
    plan = make_plan(recipe, Machine(False, int(0.9 * needed), "for this test"), Silent())
    assert not plan.fits
    told = refusals(plan)
    assert told[0].startswith("training needs")
    assert any("train.micro_batch_size=" in line and line.startswith("fits with") for line in told[1:])
    enough = [change for change in plan.changes if change.bytes <= 0.9 * needed]
    smaller = enough[0].text.split("=")[1]
    again = small_recipe(tmp_path, tiny("llama"), "completion", train={"micro_batch_size": int(smaller)})
    assert make_plan(again, Machine(False, int(0.9 * needed), ""), Silent()).fits


def test_what_can_never_fit_says_so(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    told = refusals(make_plan(recipe, Machine(False, 1000, "for this test"), Silent()))
    assert told[-1].startswith("no change of the recipe makes it fit; the least is")


def test_with_unknown_lengths_only_the_certain_is_refused() -> None:
    plan = shipped("roberta_mnli", machine=Machine(False, 600 * 2**20, "--memory"))
    assert plan.bound
    assert not plan.fits
    assert refusals(plan) == []
    assert any(line.startswith("training may need") for line in sentences(plan))
    assert refusals(shipped("roberta_mnli", machine=Machine(False, 100 * 2**20, "--memory")))


def test_the_largest_micro_batch_is_the_largest() -> None:
    class Linear:
        on_cuda = True

        def train(self, shape: Shape, accumulating: bool) -> dict[str, int]:
            return {"weights": 1000, "activations": 10 * shape.tokens}

    need = need_of_rows(Linear(), Shape(1, 5, 1))  # type: ignore[arg-type]
    assert [need(1), need(2), need(9)] == [1050, 1100, 1450]
    assert [rows_that_fit(need, capacity) for capacity in (1049, 1050, 1099, 1100, 1450)] == [0, 1, 1, 2, 9]


@pytest.mark.parametrize(
    ("text", "count"), [("24GiB", 24 * 2**30), ("800MiB", 800 * 2**20), ("1.5GB", 1_500_000_000), ("4096", 4096)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "lots", "0", "-3GiB", "3 parsecs"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(LorakitError, match="give a size such as 24GiB"):
        parse_size(text)


def test_the_command_prints_and_refuses(tiny: Tiny, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny("llama"), "completion")
    shown = lorakit("plan", str(file), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for word in ("all-linear", "truncated", "padding", "optimiser's state", "the largest micro-batch that fits"):
        assert word in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 100 + len(str(tmp_path))
    refused = lorakit("plan", str(file), "--memory", "1MiB", "--json", cwd=tmp_path)
    assert refused.returncode == 1
    assert "error: training needs" in refused.stderr
    assert json.loads(refused.stdout)["fits"] is False
    assert not (tmp_path / "runs").exists()


def test_measuring_leaves_nothing_behind(tiny: Tiny, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny("llama"), "completion", rows=80)
    before = sorted(tmp_path.rglob("*"))
    shown = lorakit("plan", str(file), "--measure", "--json", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)["measured"]
    assert found["steps"] == 7  # of the first epoch's 10, the first three not counted
    assert found["training_seconds"] == pytest.approx(20 * found["seconds_per_step"])
    assert found["evaluations"] == 2
    assert found["measured_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "minilm_stsb",
            [f"task.path={DATA / 'glue'}", "task.limit={train: 640, validation: 100}", "train.batch_size=64"],
        ),
        (
            "smollm2_e2e",
            [
                f"task.path={DATA / 'e2e'}",
                "task.limit={train: 16, validation: 8}",
                "train.batch_size=8",
                "generate.max_new_tokens=4",
            ],
        ),
    ],
)
def test_memory_is_predicted_within_a_fifth(name: str, overrides: list[str], tmp_path: Path) -> None:
    """In a process of its own, whose imports are the baseline."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there: it holds the official GLUE and E2E files")
    recipe = ROOT / f"recipes/{name}.yaml"
    out = tmp_path / "run"
    words = ["train", str(recipe), *overrides, "train.epochs=1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "lorakit", *words], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    found = report(out)
    if found["memory_in_use_bytes"] is None:
        pytest.skip("nobody counts the memory in use on this system: no glibc")
    assert found["predicted_memory_bytes"] == pytest.approx(found["memory_in_use_bytes"], rel=0.2)

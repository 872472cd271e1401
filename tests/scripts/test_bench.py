import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from benchmarks import contenders, generation, growth, merging, overhead, starting, training
from benchmarks.made_up import Shape, make_base, make_recipe
from benchmarks.memory import Peak
from benchmarks.pages import Curve, Results, as_json, goal_rows, machine, markdown
from benchmarks.ratios import Goal, Line, Measured, curve_difference, measured, ratio
from benchmarks.worker import job_of
from benchmarks.workers import Worker, WorkerFailed, rotated
from benchmarks.workloads import WORKLOADS, Workload

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's use of it
BY_NAME = {workload.name: workload for workload in WORKLOADS}
ORDERS = [{"steps": 2}, {"steps": 1}]


class Lines:
    """A channel without a process: orders are given beforehand, answers are kept."""

    def __init__(self, orders: list[dict[str, Any]] | None = None) -> None:
        self.orders, self.answers = list(orders or []), list[dict[str, Any]]()

    def send(self, **answer: Any) -> None:
        self.answers.append(json.loads(json.dumps(answer)))

    def receive(self) -> dict[str, Any] | None:
        return self.orders.pop(0) if self.orders else None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of one answer run in this process, which has everything imported."""

    def once(job: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        for name, value in (environment or {}).items():
            monkeypatch.setenv(name, value)
        lines: Any = Lines()
        job_of(job["kind"])(dict(job), lines)
        (answer,) = lines.answers
        return dict(answer)

    for module in (overhead, generation, merging, growth):
        monkeypatch.setattr(module, "once", once)


@pytest.fixture
def results() -> Results:
    return Results(machine())


def test_ratios_are_of_rounds() -> None:
    """A machine that is three times slower in the second round changes no ratio."""
    assert ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0]) == Measured(2.0, 2.0, 2.2)
    assert measured([3.0, 1.0, 8.0]) == Measured(3.0, 1.0, 8.0)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0], [1.0, 2.0])


def test_goals() -> None:
    assert Goal(least=2.0).met(2.0) and not Goal(least=2.0).met(1.99)
    assert Goal(most=0.6).met(0.6) and not Goal(most=0.6).met(0.61)
    assert Goal(most=0.0).met(0.0) and not Goal(least=2.0).met(math.nan)
    assert Line("a", "b", Measured(1, 1, 1)).met is None


def test_curves() -> None:
    assert curve_difference([2.0, 1.0], [2.0, 1.0]) == 0
    assert curve_difference([2.0, 1.0], [2.0, 1.002]) == pytest.approx(0.002 / 1.002)
    assert curve_difference([0.0], [0.0]) == 0
    for other in ([2.0], [2.0, math.nan], [2.0, math.inf], []):
        assert curve_difference([2.0, 1.0], other) == math.inf


def test_each_round_begins_with_another() -> None:
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def answers(losses: list[float], seconds: float, peak: int, tokens: int = 100) -> list[dict[str, Any]]:
    """A warm round, which is slow, and two others."""
    return [
        {"seconds": seconds * (9 if index == 0 else 1), "tokens": tokens, "losses": [loss], "peak_bytes": peak + index}
        for index, loss in enumerate(losses)
    ]


def test_speed_memory_and_equal_losses(results: Results) -> None:
    told = {"lorakit": answers([3.0, 2.0, 1.0], 1.0, 50), "peft": answers([3.0, 2.0, 1.0001], 2.5, 100)}
    training.compare(BY_NAME["e2e"], told, results)
    speed, memory = results.lines
    assert speed.value == Measured(2.5, 2.5, 2.5) and speed.met
    assert memory.value.middle == 52 / 102 and memory.met
    assert not results.failures
    assert [curve.tokens_per_second for curve in results.curves] == [[100.0, 100.0], [40.0, 40.0]]


def test_goals_of_a_gpu() -> None:
    assert [BY_NAME["e2e"].goal("peft", on_gpu) for on_gpu in (False, True)] == [Goal(least=2.2), Goal(least=2.0)]
    assert [BY_NAME["stsb"].goal("peft", on_gpu) for on_gpu in (False, True)] == [Goal(least=1.3)] * 2


@pytest.mark.parametrize("theirs", [answers([3.0, 2.0, 1.1], 1, 1), answers([3.0, 2.0, 1.0], 1, 1, tokens=99)])
def test_another_training_fails(results: Results, theirs: list[dict[str, Any]]) -> None:
    training.compare(BY_NAME["stsb"], {"lorakit": answers([3.0, 2.0, 1.0], 1.0, 1), "peft": theirs}, results)
    assert len(results.failures) == 1 and "stsb: lorakit and peft do not train the same" in results.failures[0]


def test_pages(results: Results) -> None:
    results.machine = {"cpu": "X", "cores": "2", "threads": "2", "python": "3", "torch": "9"}
    results.lines = [
        Line("speed", "peft", Measured(2.5, 2.0, 3.0), "x", Goal(least=2.2)),
        Line("adapters", "none", Measured(0.2, 0.2, 0.2), "%", Goal(most=0.12)),
        Line("memory", "", Measured(2e9, 2e9, 2e9), "GB"),
    ]
    results.curves = [
        Curve("e2e", "lorakit", [10.0, 30.0], [2.0, 1.0], 2**20, 0.0, 1e-3),
        Curve("e2e", "peft", [10.0], [2.0, 1.5], 2**21, 0.5, 1e-3),
    ]
    results.failures, results.notes = ["they differ"], ["a note"]
    page = markdown(results)
    for line in (
        "X, 2 cores, 2 threads, python 3, torch 9.",
        "**FAILED: they differ**",
        "| speed | peft | 2.50× (2.00× to 3.00×) | ≥ 2.20× | yes |",
        "| adapters | none | 20.0% | ≤ 12.0% | no |",
        "| memory |  | 2.00 GB |  |  |",
        "| e2e | lorakit | 20 | 1 MiB | 2.0000 to 1.0000 |  |",
        "| e2e | peft | 10 | 2 MiB | 2.0000 to 1.5000 | 5.0e-01 FAILED: over 1e-03 |",
        "- a note",
    ):
        assert line in page.splitlines()
    read = json.loads(as_json(results))
    assert [line["met"] for line in read["lines"]] == [True, False, None]
    assert [curve["failed"] for curve in read["training"]] == [False, True]
    assert read["failures"] == ["they differ"] and read["machine"]["torch"] == "9"


def trained(workload: Workload, contender: str, folder: Path) -> list[dict[str, Any]]:
    recipe, overrides = workload.make(3, folder / contender, tiny=True)
    lines: Any = Lines(ORDERS)
    contenders.work({"contender": contender, "recipe": str(recipe), "overrides": overrides}, lines)
    ready, *told = lines.answers
    assert ready == {"ready": True}
    return [dict(one) for one in told]


@pytest.mark.parametrize("name", ["e2e", "stsb", "gpt2-medium"])
def test_contenders_train_the_same(name: str, tmp_path: Path, one_thread: None) -> None:
    workload = BY_NAME[name]
    told = {contender: trained(workload, contender, tmp_path) for contender in ("lorakit", *workload.goals)}
    assert [len(one["losses"]) for one in told["lorakit"]] == [2, 1]
    for theirs in told.values():
        assert [one["tokens"] for one in theirs] == [one["tokens"] for one in told["lorakit"]]
        ours = [loss for one in told["lorakit"] for loss in one["losses"]]
        assert curve_difference(ours, [loss for one in theirs for loss in one["losses"]]) < 1e-5


def test_other_initial_tensors_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The comparison is no empty one."""
    monkeypatch.setattr("benchmarks.peft_side.copy_initial", lambda prepared, model: None)
    told = [trained(BY_NAME["stsb"], contender, tmp_path) for contender in ("lorakit", "peft")]
    ours, theirs = ([loss for one in rows for loss in one["losses"]] for rows in told)
    assert curve_difference(ours, theirs) > 1e-3


def test_a_made_up_base_is_that_of_its_shape(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = Shape("llama", "completion", 8, 4, 64, "bfloat16", {"tie_word_embeddings": True, "num_hidden_layers": 3})
    model = AutoModelForCausalLM.from_pretrained(make_base(shape, tmp_path / "base"), dtype="auto")
    assert str(model.dtype) == "torch.bfloat16" and len(model.model.layers) == 3
    norm, matrix = model.model.norm.weight, model.model.layers[0].mlp.up_proj.weight
    assert (norm == 1).all() and 0.015 < matrix.float().std() < 0.025
    assert not (matrix == model.model.layers[1].mlp.up_proj.weight).all()
    recipe = make_recipe(shape, 5, tmp_path / "more")
    assert len((recipe.parent / "train.jsonl").read_text().splitlines()) == 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="counts on Linux alone")
def test_peak_memory_is_above_what_was_there(one_thread: None) -> None:
    before = torch.ones(25_000_000)
    peak = Peak()
    assert peak.bytes() < 20e6
    part = torch.ones(20_000_000)  # 80 MB, and gone when we look
    del part
    assert 60e6 < peak.bytes() < 110e6 and len(before) == 25_000_000


def test_overhead(here: None, results: Results, tmp_path: Path, one_thread: None) -> None:
    overhead.run(BY_NAME["e2e"], 2, 2, results, tmp_path, tiny=True)
    (line,) = results.lines
    assert line.unit == "%" and line.goal == overhead.ON_CPU and line.value.low <= line.value.middle


def test_generation(here: None, results: Results, tmp_path: Path, one_thread: None) -> None:
    generation.run(BY_NAME["e2e"], 1, 3, results, tmp_path, tiny=True)
    assert [line.goal for line in results.lines] == [generation.GOAL]
    assert results.notes[0].startswith("e2e, generation: 3 of 3 texts are equal")


def test_merge(here: None, results: Results, tmp_path: Path) -> None:
    merging.run(merging.TINY, 1, results, tmp_path)
    assert not results.failures and len(results.lines) == 9
    compared = next(note for note in results.notes if note.startswith("merge: "))
    assert compared.startswith("merge: 21 of 21 tensors are bit-equal")


def test_merged_weights_that_differ_fail(here: None, results: Results, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(merging, "_compare", lambda one, other: {"tensors": 2, "equal": 1, "apart": 0.1})
    merging.run(merging.TINY, 1, results, tmp_path)
    assert results.failures == ["merge: lorakit's and PEFT's weights differ by 1.0e-01 of their size"]


def test_sizes_of_merged_models() -> None:
    assert merging.shape_of(4.0).fields["num_hidden_layers"] == 28
    assert merging.shape_of(0.1).fields["num_hidden_layers"] == 1


def test_growth(here: None, results: Results, tmp_path: Path, one_thread: None) -> None:
    growth.run(1, results, tmp_path, tiny=True)
    assert [line.unit for line in results.lines] == ["x", "MB", "x"]
    assert "200 rows" in results.notes[0]


def test_start(results: Results, tmp_path: Path) -> None:
    starting.run(1, results, tmp_path)
    assert [line.what for line in results.lines] == ["start: lorakit --help", "start: a recipe error"]
    assert not results.failures


def test_what_is_not_here_is_skipped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.workloads.DATA", Path("/nonexistent"))
    assert bench.main(["llama-8b", "e2e"]) == 0
    said = capsys.readouterr().out
    assert "llama-8b: skipped: needs a GPU" in said and "e2e: skipped: " in said
    with pytest.raises(SystemExit, match="nonesuch: no such benchmark; there are e2e, "):
        bench.main(["nonesuch"])


def test_without_peft_lorakit_stands_alone(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    training.run(BY_NAME["e2e"], 1, 1, results, tmp_path, tiny=True)
    assert [curve.contender for curve in results.curves] == ["lorakit"] and not results.lines
    assert results.notes[0] == "e2e: peft left out: peft is not installed"


def test_a_worker_that_fails_says_why() -> None:
    job = {"kind": "train", "contender": "lorakit", "recipe": "nonesuch.yaml", "overrides": []}
    with Worker(job) as worker, pytest.raises(WorkerFailed, match="nonesuch.yaml: cannot be read"):
        worker.answer()


@pytest.mark.slow
def test_from_the_command_line_to_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, file = tmp_path / "bench.md", tmp_path / "bench.json"
    arguments = ["stsb", "--tiny", "--rounds", "1", "--steps", "1", "--json", str(file), "--markdown", str(page)]
    assert bench.main(arguments) == 0
    read = json.loads(file.read_text())
    assert [curve["contender"] for curve in read["training"]] == ["lorakit", "peft", "peft-padded"]
    assert all(curve["peak_bytes"] > 0 and len(curve["losses"]) == 2 for curve in read["training"])
    assert [line["what"] for line in read["lines"]] == ["stsb, tokens/s"] * 2 and not read["failures"]
    assert "| stsb | peft-padded |" in page.read_text()
    assert goal_rows([])[1] == [] and "stsb, tokens/s" in capsys.readouterr().out

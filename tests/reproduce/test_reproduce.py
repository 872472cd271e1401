"""Judging, on runs that were never made: their reports are written where the runs would be."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import recipe_file

import lorakit.reproduce as package
from lorakit.cli import main
from lorakit.errors import RecipeError
from lorakit.progress import Silent
from lorakit.reproduce import Reproduction, Request, reproduce
from lorakit.reproduce.entries import entries
from lorakit.trials.jobs import Job
from lorakit.trials.settings import Given, read

Tiny = Callable[[str], Path]
PAPER = {"source": "Table 2", "metric": "accuracy", "value": 80.0, "tolerance": 2.0, "statistic": "median", "seeds": 3}
ROW = {"value": 70.0, "tolerance": 1.0}


@pytest.fixture
def made(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Given]:
    """Writes a recipe and loads it; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)

    def make(name: str = "small", kind: str = "classification", **sections: Any) -> Given:
        sections = {key: value for key, value in {"paper": PAPER, **sections}.items() if value}
        file = recipe_file(tmp_path / name, tiny("bert"), kind, **sections)
        return read(file.rename(file.with_name(f"{name}.yaml")), [f"name={name}"])

    return make


def pretend(job: Job, validation: dict[str, float | None], parameters: int = 1024) -> None:
    """As if a run had been finished."""
    (job.folder / "recipes").mkdir(parents=True, exist_ok=True)
    job.run.mkdir(parents=True)
    report = {"status": "complete", "metrics": {"validation": validation}, "parameters": {"method": parameters}}
    (job.run / "report.json").write_text(json.dumps(report))


def pretend_all(given: Sequence[Given], values: dict[str, Sequence[float]], **asked: Any) -> None:
    """One run per value of every row."""
    for entry in entries(given, asked.get("methods"), asked.get("seeds"), asked.get("out")):
        of_row = values[f"{entry.recipe.name} {entry.method}"]
        for job, value in zip(entry.jobs(), of_row, strict=True):
            pretend(job, {entry.contract.metric: value})


def verdicts(found: Reproduction) -> list[str]:
    return [outcome.judged.verdict for outcome in found.outcomes]


@pytest.mark.parametrize(
    ("values", "verdict", "middle"),
    [
        ((0.70, 0.79, 0.99), "inside", 79.0),
        ((0.70, 0.82, 0.99), "inside", 82.0),  # the edge belongs to it, also in binary fractions
        ((0.70, 0.83, 0.99), "above", 83.0),
        ((0.70, 0.77, 0.99), "below", 77.0),
    ],
)
def test_a_median_against_a_number(
    made: Callable[..., Given], values: Sequence[float], verdict: str, middle: float
) -> None:
    given = made()
    pretend_all([given], {"small lora": values})
    found = reproduce(Request([given]), Silent())
    assert verdicts(found) == [verdict]
    measured, spread = found.outcomes[0].judged.metrics["accuracy"]
    assert measured == pytest.approx(middle)
    assert spread is not None and 11 < spread < 16
    assert found.succeeded == (verdict != "below")
    facts = json.loads(Path("reproduce/small/reproduce.json").read_text())
    (row,) = facts["rows"]
    assert (row["verdict"], row["statistic"], row["seeds"], row["split"]) == (verdict, "median", 3, "validation")
    assert facts["succeeded"] == found.succeeded
    assert [run["metrics"]["accuracy"] for run in row["runs"]] == list(values)


def test_a_mean_is_another_number(made: Callable[..., Given]) -> None:
    given = made(paper=PAPER | {"statistic": "mean"})
    pretend_all([given], {"small lora": (0.70, 0.79, 0.99)})
    found = reproduce(Request([given]), Silent())
    assert verdicts(found) == ["above"]
    assert found.outcomes[0].judged.metrics["accuracy"][0] == pytest.approx(82.67, abs=0.01)
    assert found.outcomes[0].line() == (
        "small, lora: above: accuracy 82.67 ± 14.84, mean over 3 seeds, is higher than 80 ± 2, by 0.67: better "
        "(Table 2)"
    )


@pytest.mark.parametrize(("loss", "verdict"), [(1.5, "below"), (0.5, "above"), (1.1, "inside")])
def test_of_a_loss_less_is_better(made: Callable[..., Given], loss: float, verdict: str) -> None:
    given = made(paper={"source": "x", "metric": "loss", "value": 1.0, "tolerance": 0.1})
    pretend_all([given], {"small lora": (loss,)})
    found = reproduce(Request([given]), Silent())
    assert verdicts(found) == [verdict]
    if verdict == "below":
        assert "loss 1.5000, one seed, is higher than 1 ± 0.1, by 0.40: worse" in found.outcomes[0].line()


def test_a_failed_seed_is_a_failed_row(made: Callable[..., Given], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two good seeds of three are no median of three."""
    given = made(methods={"full": {"lr": 0.001, "paper": ROW}})
    pretend_all([given], {"small lora": (0.80, 0.80, 0.80), "small full": (0.7, 0.7, 0.7)}, methods=["all"])
    monkeypatch.setattr(package, "run_all", lambda *_, **__: {"small-lora-seed1": "out of memory"})
    found = reproduce(Request([given], ["all"]), Silent())
    assert verdicts(found) == ["failed", "inside"]
    assert not found.succeeded
    assert found.outcomes[0].line() == "small, lora: failed: seed 1: out of memory"
    monkeypatch.setattr(package, "run_all", lambda *_, **__: {"small-lora-seed1": "x", "small-lora-seed2": "x"})
    assert reproduce(Request([given]), Silent()).outcomes[0].line() == "small, lora: failed: seeds 1, 2: x"
    _, lines = found.table()
    assert [line[2] for line in lines] == ["failed", "80.0", "70.00 ± 0.00", "70.0"]


def test_an_undefined_metric_is_no_result(made: Callable[..., Given]) -> None:
    given = made()
    (entry,) = entries([given], None, None, None)
    for job, value in zip(entry.jobs(), (0.8, None, 0.8), strict=True):
        pretend(job, {"accuracy": value})
    assert verdicts(reproduce(Request([given]), Silent())) == ["failed"]


def test_fewer_seeds_than_reported_are_told(made: Callable[..., Given]) -> None:
    given = made()
    pretend_all([given], {"small lora": (0.80, 0.80)}, seeds=2)
    found = reproduce(Request([given], seeds=2), Silent())
    assert verdicts(found) == ["inside"]
    assert "median over 2 seeds" in found.outcomes[0].line()
    assert "reported over 3 seeds" in found.outcomes[0].line()


def test_without_a_tolerance_nothing_is_judged(made: Callable[..., Given]) -> None:
    said = {"known": "Looks like F1.", "params": "0.1M", "label": "BitFit*"}
    given = made(
        paper={key: value for key, value in PAPER.items() if key != "tolerance"},
        methods={"bitfit": {"paper": {"value": 92.7, **said}}, "full": {"lr": 0.001}},
    )
    names = ["lora", "bitfit", "full"]
    pretend_all([given], {f"small {name}": (0.1, 0.1, 0.1) for name in names}, methods=names)
    found = reproduce(Request([given], names), Silent())
    assert verdicts(found) == ["not judged"] * 3
    assert found.succeeded
    assert found.lines() == [
        "small, lora: not judged: accuracy 10.00 ± 0.00, median over 3 seeds (Table 2: 80.0); "
        "the recipe has no tolerance for it",
        "small, BitFit* (0.1M): not judged: accuracy 10.00 ± 0.00, median over 3 seeds (Table 2: 92.7); "
        "the recipe has no tolerance for it",
        "small, full: not judged: accuracy 10.00 ± 0.00, median over 3 seeds; the recipe has no number for this row",
        "note on small, BitFit* (0.1M): Looks like F1.",
    ]
    header, lines = found.table()
    assert header[0].endswith("bert"), "the base, where there is one"
    assert header[1:] == ["trained", "accuracy"]
    assert lines[2][0] == "BitFit*"
    assert lines[2][1:] == ["1,024", "10.00 ± 0.00"]
    assert lines[3] == ["  reported, Table 2", "0.1M", "92.7"]
    assert lines[5] == ["  reported, Table 2", "–", "–"]
    text = Path("reproduce/small/reproduce.md").read_text()
    assert "| reported, Table 2 | 0.1M | 92.7 |" in text
    assert "- note on small, BitFit\\* (0.1M): Looks like F1." in text


def test_a_row_that_cannot_be_had_is_shown_without_a_run(made: Callable[..., Given]) -> None:
    given = made(methods={"bitfit": {"paper": {"value": 71.3, "unavailable": "this base has no biases"}}})
    pretend_all([given], {"small lora": (0.8,)}, methods=["lora"], seeds=1)
    found = reproduce(Request([given], ["all"], seeds=1), Silent())
    assert found.succeeded
    assert found.outcomes[1].line() == "small, bitfit: not judged: not run: this base has no biases"
    assert found.table()[1][2][1:] == ["–", "–"]
    assert found.table()[1][3][1:] == ["–", "71.3"]


def glue(name: str, subset: str, made: Callable[..., Given], **sections: Any) -> Given:
    data = dict.fromkeys(("kind", "train", "validation"), "absent")
    paper = {**PAPER, "metric": {"cola": "matthews", "stsb": "pearson"}.get(subset, "accuracy"), "value": 90.0}
    return made(name, task={"name": "glue", "subset": subset, **data}, paper=paper, **sections)


def test_a_column_per_task_and_the_average_of_all_eight(made: Callable[..., Given]) -> None:
    tasks = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"]
    given = [glue(f"r_{task}", task, made) for task in tasks]
    values = {f"r_{task} lora": (0.9 + i / 100,) * 3 for i, task in enumerate(tasks)}
    pretend_all(given, values)
    found = reproduce(Request(given), Silent())
    header, (measured, reported) = found.table()
    assert header[1:4] == ["trained", "mnli accuracy", "sst2 accuracy"]
    assert header[-2:] == ["stsb pearson", "average"]
    assert measured[2] == "90.00 ± 0.00"
    assert measured[-1] == "93.50"
    assert reported[-1] == "90.00"
    assert verdicts(found) == ["inside"] * 3 + ["above"] * 5
    assert Path("reproduce/reproduce.md").is_file()
    assert (Path("reproduce") / "r_rte" / "runs" / "r_rte-lora-seed0").is_dir()
    header, _ = reproduce(Request(given[1:]), Silent()).table()
    assert header[-1] == "stsb pearson", "seven are no average"


def test_a_recipe_runs_after_the_one_that_it_starts_from(
    made: Callable[..., Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {"init_from": {"run": "runs/r_mnli"}}
    methods = {"full": {"lr": 0.001, "init_from": {"run": "runs/r_mnli-full"}, "paper": ROW}}
    rte = glue("r_rte", "rte", made, train=start, methods=methods)
    mnli = glue("r_mnli", "mnli", made, methods={"full": {"lr": 0.001, "paper": ROW}})
    order: list[list[str]] = []
    starts: dict[str, str] = {}

    def run_all(jobs: Sequence[Job], *_: Any, **__: Any) -> dict[str, str]:
        order.append([job.label for job in jobs])
        for job in jobs:
            if job.recipe.train.init_from:
                starts[job.label] = job.recipe.train.init_from.run
            pretend(job, {"accuracy": {0: 0.7, 1: 0.9, 2: 0.8}[job.seed] if "lora" in job.name else 0.7})
        return {}

    monkeypatch.setattr(package, "run_all", run_all)
    reproduce(Request([rte, mnli], ["all"]), Silent())
    assert [{label.rpartition("-seed")[0] for label in wave} for wave in order] == [
        {"r_mnli-lora", "r_mnli-full"},
        {"r_rte-lora", "r_rte-full"},
    ]
    best = "reproduce/r_mnli/runs/r_mnli-lora-seed1"
    assert {starts[f"r_rte-lora-seed{seed}"] for seed in range(3)} == {best}
    assert starts["r_rte-full-seed2"] == "reproduce/r_mnli/runs/r_mnli-full-seed0", (
        "its own method's; of equals the first"
    )


def test_what_starts_from_a_failed_row_is_not_run(made: Callable[..., Given], monkeypatch: pytest.MonkeyPatch) -> None:
    rte = glue("r_rte", "rte", made, train={"init_from": {"run": "runs/r_mnli"}})
    mnli = glue("r_mnli", "mnli", made)

    def run_all(jobs: Sequence[Job], *_: Any, **__: Any) -> dict[str, str]:
        assert all("mnli" in job.name for job in jobs)
        for job in jobs[1:]:
            pretend(job, {"accuracy": 0.9})
        return {jobs[0].label: "killed"}

    monkeypatch.setattr(package, "run_all", run_all)
    found = reproduce(Request([mnli, rte]), Silent())
    assert verdicts(found) == ["failed", "failed"]
    assert found.outcomes[1].line() == "r_rte, lora: failed: not run: r_mnli, lora, from which it starts, has failed"


def test_a_run_to_start_from_that_is_there_is_taken(made: Callable[..., Given], tmp_path: Path) -> None:
    rte = glue("r_rte", "rte", made, train={"init_from": {"run": "runs/r_mnli"}})
    both = (
        "r_rte, lora: it starts from runs/r_mnli: no finished run is there; give the recipe r_mnli as well .* or make"
    )
    with pytest.raises(RecipeError, match=both):
        reproduce(Request([rte]), Silent())
    (tmp_path / "runs/r_mnli").mkdir(parents=True)
    for name in ("recipe.yaml", "adapter.safetensors"):
        (tmp_path / "runs/r_mnli" / name).touch()
    (entry,) = entries([rte], None, 1, None)
    assert entry.after is None
    start = entry.jobs()[0].recipe.train.init_from
    assert start is not None and start.run == "runs/r_mnli"


def test_a_corrected_number_keeps_finished_runs(made: Callable[..., Given]) -> None:
    given = made()
    pretend_all([given], {"small lora": (0.8, 0.8, 0.8)})
    assert verdicts(reproduce(Request([given]), Silent())) == ["inside"]
    again = read(given.file, [*given.overrides, "paper.value=90.0", "paper.note=corrected"])
    assert verdicts(reproduce(Request([again]), Silent())) == ["below"]
    other = read(given.file, [*given.overrides, "train.lr=0.5"])
    with pytest.raises(RecipeError, match=r"small-lora-seed0, .* have been trained by other recipes"):
        reproduce(Request([other]), Silent())


def test_what_is_wrong_is_said_before_anything_runs(made: Callable[..., Given]) -> None:
    with pytest.raises(RecipeError, match="paper: missing; reproduce needs the number"):
        reproduce(Request([made(paper={})]), Silent())
    with pytest.raises(RecipeError, match='did you mean "full"'):
        reproduce(Request([made("other")], ["fulll"]), Silent())
    with pytest.raises(RecipeError, match="two recipes are called other"):
        reproduce(Request([made("other"), made("other")]), Silent())
    first = glue("a", "rte", made, train={"init_from": {"run": "runs/b"}})
    second = glue("b", "mnli", made, train={"init_from": {"run": "runs/a"}})
    with pytest.raises(RecipeError, match="starts from a run that starts from it"):
        reproduce(Request([first, second]), Silent())
    assert not Path("reproduce").exists()


def test_the_command_says_it_and_ends_with_1_where_it_is_below(
    made: Callable[..., Given], capsys: pytest.CaptureFixture[str]
) -> None:
    given = made(paper=PAPER | {"known": "Nobody has come near it."})
    pretend_all([given], {"small lora": (0.7, 0.7, 0.7)})
    codes = []
    for value in ("80", "70"):
        with pytest.raises(SystemExit) as done:
            main(["reproduce", str(given.file), *given.overrides, f"paper.value={value}"])
        codes.append(done.value.code or 0)
    assert codes == [1, 0]
    out, err = capsys.readouterr()
    assert "error: below, or failed: small, lora; the same command tries failed runs again" in err
    assert "small, lora: below: accuracy 70.00 ± 0.00, median over 3 seeds, is lower than 80 ± 2, by 8.00: worse" in out
    assert "note on small, lora: Nobody has come near it." in out
    assert "written: reproduce/small/reproduce.md" in out
    with pytest.raises(SystemExit) as done:
        main(["reproduce", "train.lr=1"])
    assert done.value.code == 2
    assert "give a recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_a_split_that_training_does_not_read_is_measured_once(
    tmp_path: Path, tiny: Tiny, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One real run, of text: trained, evaluated on test by the published adapter, and then only looked up."""
    monkeypatch.chdir(tmp_path)
    from small_runs import write_rows

    test = write_rows(tmp_path / "test.jsonl", "completion", 6, 9)
    paper = {"source": "Table 3", "metric": "loss", "value": 5.0, "tolerance": 5.0, "split": "test"}
    file = recipe_file(
        tmp_path, tiny("gpt2"), "completion", task={"test": test}, paper=paper, train={"epochs": "absent", "steps": 2}
    )
    given = read(file, [])
    found = reproduce(Request([given], jobs=1), Silent())
    assert verdicts(found) == ["inside"], found.lines()
    (job,) = found.outcomes[0].jobs
    kept = json.loads((job.folder / "evaluations/small-lora-seed0-test.json").read_text())
    validation = json.loads((job.run / "report.json").read_text())["metrics"]["validation"]
    assert kept["metrics"]["loss"] != validation["loss"]
    assert found.outcomes[0].judged.metrics["loss"][0] == kept["metrics"]["loss"]
    assert (job.run / "predictions/test.jsonl").is_file()

    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("lorakit.reproduce.measure.open_session", never)
    assert verdicts(reproduce(Request([given]), Silent())) == ["inside"]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(Exception, match=r"test\.jsonl"):
        reproduce(Request([given]), Silent())

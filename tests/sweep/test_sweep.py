import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import recipe_file

from lorakit import sweep
from lorakit.cli import main
from lorakit.progress import Progress
from lorakit.recipe import dump, load
from lorakit.runtime import derive
from lorakit.trials.jobs import Job

Tiny = Callable[[str], Path]
Command = Callable[..., tuple[int, str, str]]
GRID = ("method.rank=1,4", "method.targets=[q],[q, v]")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs only write a report; the labels of those that were made, in order. What starts from a run fails."""
    made: list[str] = []

    def run_all(jobs: Sequence[Job], progress: Progress, *, label: str, at_once: int | None = None) -> dict[str, str]:
        assert label == "sweep"
        failed = {}
        for job in jobs:
            if job.done():
                continue
            made.append(job.label)
            job.file.parent.mkdir(parents=True, exist_ok=True)
            job.file.write_text(dump(job.recipe))
            job.run.mkdir(parents=True, exist_ok=True)
            names = ["loss", *job.recipe.task.metrics]
            values = {name: derive(job.seed, job.name, name) % 1000 / 1000 for name in names}
            facts = {"status": "complete", "seconds": 2.5, "best_step": 3 + job.seed, "metrics": {"validation": values}}
            if job.recipe.train.init_from is None:
                (job.run / "report.json").write_text(json.dumps(facts))
            else:
                failed[job.label] = "nowhere"
        return failed

    monkeypatch.setattr(sweep, "run_all", run_all)
    return made


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, standard output, standard error of `lorakit sweep`."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["sweep", *map(str, words)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def cells(text: str) -> list[list[str]]:
    """Cells of the tables of a Markdown file."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_whole_sweep_and_more_of_it(tmp_path: Path, tiny: Tiny, done: list[str], command: Command) -> None:
    file, out = recipe_file(tmp_path, tiny("bert"), "regression"), tmp_path / "out"
    words = (file, *GRID, "train.epochs=1", "train.head_bias=mean", "--out", out)
    code, said, err = command(*words, "--seeds", 2)
    assert code == 0, err
    assert done == [
        "rank-1_targets-q-seed0", "rank-1_targets-q-v-seed0", "rank-4_targets-q-seed0", "rank-4_targets-q-v-seed0",
        "rank-1_targets-q-seed1", "rank-1_targets-q-v-seed1", "rank-4_targets-q-seed1", "rank-4_targets-q-v-seed1",
    ]  # fmt: skip
    assert "4 points, 2 seeds each: 8 runs" in said
    found = facts(out)
    assert [point["values"] for point in found["points"]] == [
        {"method.rank": rank, "method.targets": targets} for rank in (1, 4) for targets in (["q"], ["q", "v"])
    ]
    assert [point["parameters"] for point in found["points"]] == [256, 512, 1024, 2048]
    metric = found["metrics"][0]
    for point in found["points"]:
        mine = [
            run["report"]["metrics"]["validation"][metric] for run in found["runs"] if run["point"] == point["label"]
        ]
        assert point["metrics"][metric]["mean"] == pytest.approx(sum(mine) / 2)
        assert point["metrics"][metric]["std"] == pytest.approx(abs(mine[0] - mine[1]) / 2**0.5)
        assert list(point["by_seed"].values()) == mine
    means = {point["label"]: point["metrics"][metric]["mean"] for point in found["points"]}
    assert found["best"] == max(means, key=lambda label: means[label])
    assert found["better"] == "higher"

    text = (out / "sweep.md").read_text()
    header, _, *lines = cells(text)
    assert header == [r"targets \\ rank", "1", "4"]
    shown = {f"rank-{rank}_targets-{targets}": line[column]
             for line, targets in zip(lines[:2], ("q", "q-v"), strict=True)
             for column, rank in ((1, 1), (2, 4))}  # fmt: skip
    assert {label: cell.strip("*").split(" ± ")[0] for label, cell in shown.items()} == {
        label: f"{100 * mean:.2f}" for label, mean in means.items()
    }
    assert [label for label, cell in shown.items() if cell.startswith("**")] == [found["best"]]
    assert found["verdict"] in said
    assert "flatters" in said
    assert {path.name for path in out.iterdir()} == {
        "recipes", "runs", "sweep.json", "sweep.md", "curve.png", "curve.svg", "heatmap.png", "heatmap.svg",
    }  # fmt: skip
    assert "var(--" not in (out / "heatmap.svg").read_text(), "it stands alone"

    done.clear()  # more values, more seeds; one run is lost
    (out / "runs/rank-4_targets-q-seed1/report.json").unlink()
    more = (file, "method.rank=1,4,2", "method.targets=[q, v],[q]", *words[3:])
    assert command(*more, "--seeds", 3)[0] == 0
    assert sorted(done) == [
        "rank-1_targets-q-seed2", "rank-1_targets-q-v-seed2",
        *(f"rank-2_targets-{targets}-seed{seed}" for targets in ("q", "q-v") for seed in range(3)),
        "rank-4_targets-q-seed1", "rank-4_targets-q-seed2", "rank-4_targets-q-v-seed2",
    ]  # fmt: skip

    code, _, err = command(*words[:3], "train.epochs=2", *words[4:])
    assert code == 2
    assert "have been trained by other recipes" in err


@pytest.mark.slow
def test_real_runs(tmp_path: Path, tiny: Tiny, command: Command) -> None:
    file, out = recipe_file(tmp_path, tiny("bert")), tmp_path / "out"
    words = (file, "method.rank=1,4", "train.epochs=1", "--out", out)
    code, said, err = command(*words)
    assert code == 0, err
    found = facts(out)
    assert [run["report"]["parameters"]["method"] for run in found["runs"]] == [512, 2048]
    assert [point["parameters"] for point in found["points"]] == [512, 2048]
    assert {path.name for path in out.iterdir()} >= {"recipes", "runs", "logs", "sweep.json", "sweep.md", "curve.png"}
    (out / "runs/rank-4-seed0/report.json").unlink()
    code, said, err = command(*words)
    assert code == 0, err
    assert "1 of 2 runs were finished before" in said
    assert [point["metrics"] for point in facts(out)["points"]] == [point["metrics"] for point in found["points"]]


def test_methods_are_an_axis_at_their_own_rates(tmp_path: Path, tiny: Tiny, done: list[str], command: Command) -> None:
    file = recipe_file(tmp_path, tiny("bert"), methods={"full": {"lr": 0.002}})
    linked = "task.limit.train+train.batch_size+train.epochs=8+4+2,16+8+1"
    code, said, err = command(file, linked, "--methods", "lora,full,lora+", "--out", tmp_path / "out")
    assert code == 0, err
    made = [load(tmp_path / "out/recipes" / f"{label}.yaml") for label in done]
    assert [(one.method[0].name, one.train.lr, one.train.batch_size, one.train.epochs) for one in made] == [
        ("lora", 0.01, 4, 2), ("lora", 0.01, 8, 1), ("full", 0.002, 4, 2), ("full", 0.002, 8, 1),
        ("lora", 0.01, 4, 2), ("lora", 0.01, 8, 1),
    ]  # fmt: skip
    assert [one.train.optimizer.lr_b_ratio for one in made] == [None] * 4 + [16, 16]
    assert [{str(k): v for k, v in one.task.limit.items()}["train"] for one in made] == [8, 16] * 3
    assert done[3:5] == [
        "full_limit-train-16_batch_size-8_epochs-1-seed0", "loraplus_limit-train-8_batch_size-4_epochs-2-seed0"
    ]  # fmt: skip
    assert "one seed each does not tell" in said
    assert (tmp_path / "out/curve.png").is_file()


def test_drawn_points_and_failed_ones(tmp_path: Path, tiny: Tiny, done: list[str], command: Command) -> None:
    file, out = recipe_file(tmp_path, tiny("bert")), tmp_path / "out"
    words = (file, "train.lr=log(1e-4..1e-2)", "method.rank=1,2,4", "train.epochs=1", "--out", out)
    assert command(*words, "--random", 3)[0] == 0
    first = list(done)
    assert command(*words, "--random", 5)[0] == 0
    assert len(done) == 5
    assert done[:3] == first
    assert {path.name for path in out.glob("*.png")} == {"scatter.png"}
    assert facts(out)["axes"][0]["range"] == {"low": 1e-4, "high": 1e-2, "log": True, "whole": False}

    words = (file, "task.limit.train=8,16", "train.epochs=1", "train.init_from.run=nowhere", "--out", tmp_path / "no")
    code, said, err = command(*words)
    assert code == 1
    assert err.splitlines()[-1] == "error: 2 runs failed; the same command tries them again"
    assert "limit.train 8, seed 0: " in err
    assert [line.split()[2] for line in said.splitlines() if line[:2] in ("8 ", "16")] == ["failed", "failed"]
    assert "no run has finished" in said
    assert "flatters" not in said
    assert facts(tmp_path / "no")["best"] is None
    assert not list((tmp_path / "no").glob("*.png"))


def test_a_metric_of_which_less_is_better(tmp_path: Path, tiny: Tiny, done: list[str], command: Command) -> None:
    file, out = recipe_file(tmp_path, tiny("gpt2"), "completion"), tmp_path / "out"
    words = (file, "train.lr=1,2,3,4", "--metric", "loss", "--out", out)
    assert command(*words)[0] == 0
    found = facts(out)
    assert found["metrics"][0] == "loss"
    assert len(found["metrics"]) == 3
    assert found["better"] == "lower"
    means = {point["label"]: point["metrics"]["loss"]["mean"] for point in found["points"]}
    assert found["best"] == min(means, key=lambda label: means[label])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.epochs=1"], ["nothing varies: give a key several values, as method.rank=1,2,4,8"]),
        (["method.rank=1,1", "train.lr=1,"], ["method.rank: 1 is given twice", "train.lr: an empty value"]),
        (["method.rnak=1,2"], ['method.rnak: unknown key; did you mean "rank"?']),
        (["method.rank=1,2", "train.lrr=3"], ["train.lrr: unknown key"]),
        (["method.rank=1,0", "method.alpha=1,2,-3"], [
            "at rank 1, alpha -3: method.alpha: got -3; allowed: a number > 0 (and at 1 more points)",
            "at rank 0, alpha 1: method.rank: got 0; allowed: a whole number > 0 (and at 2 more points)",
        ]),
        (["method.rank=4,65,66"], ["at rank 65: method.rank: 65 exceeds the 64x64 matrix", "at rank 66: "]),
        (["method.targets=[q],[nix]"], ["at targets nix: method.targets: ", "nix"]),
        (
            ["method.rank=1,2", "--methods", "lora,bitfit"],
            ["at method bitfit, rank 1: bitfit: method.rank: unknown key"],
        ),
        (["train.lr=1,2", "--methods", "lora,fulll"], ['--methods: got "fulll"; did you mean "full"?']),
        (["method.name=full,bitfit", "--methods", "lora"], ["method.name: --methods names the methods"]),
        (["method.rank=1,2", "--budget", "1k"], ["method.rank: --budget chooses the rank"]),
        (["method.targets=[q],[v]", "method.rank=1", "--budget", "x"], ["method.rank: --budget", "--budget: got 'x'"]),
        (["method.targets=[q],[q, v]", "--budget", "300"], ["at targets q, v: --budget: the nearest to 300 is rank 1"]),
        (["train.seed=1,2"], ["--seeds N makes N runs"]),
        (["train.lr=log(1e-5..1e-3)"], ["--random N draws from it"]),
        (["method.rank=1,2", "--random", "3"], ["these axes make 2 points"]),
        (["method.rank=1,2", "--metric", "acuracy"], ['--metric: got "acuracy"; did you mean "accuracy"?']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_runs(
    tmp_path: Path, tiny: Tiny, done: list[str], command: Command, words: list[str], expected: list[str]
) -> None:
    code, _, err = command(recipe_file(tmp_path, tiny("bert")), *words, "--out", tmp_path / "out")
    assert code == 2, err
    assert "Traceback" not in err
    for text in expected:
        assert text in err
    assert not done
    assert not (tmp_path / "out").exists()


def test_a_budget_chooses_the_rank_of_every_point(
    tmp_path: Path, tiny: Tiny, done: list[str], command: Command
) -> None:
    out = tmp_path / "out"
    words = (recipe_file(tmp_path, tiny("bert")), "method.targets=[q],[q, v]", "train.epochs=1", "--budget", "1k")
    code, said, err = command(*words, "--out", out)
    assert code == 0, err
    assert [(point["rank"], point["parameters"]) for point in facts(out)["points"]] == [(4, 1024), (2, 1024)]
    assert said.split("targets  ")[1].split()[:2] == ["rank", "trained"]
    assert "ranks are those nearest to 1,000 trained parameters" in said

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import recipe_file

from lorakit.cli import main
from lorakit.compare.table import Row, table
from lorakit.recipe import dump
from lorakit.trials.jobs import Job
from lorakit.trials.settings import read, recipe_for
from lorakit.trials.summary import metrics_of

Tiny = Callable[[str], Path]
MAP = {"full": {"lr": 0.002, "steps": 2}, "wide": {"method": {"name": "lora", "rank": 1000}}}
NAMES = "lora,full,wide"


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/report.json")}


def test_a_whole_comparison_and_the_same_again(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    file, out = recipe_file(tmp_path, tiny("bert"), methods=MAP), tmp_path / "out"
    words = ("compare", file, "train.epochs=1", "--methods", NAMES, "--seeds", 2, "--out", out)
    code, said, err = command(capsys, *words)
    assert code == 1, "two runs failed"
    assert err.splitlines()[0].startswith("error: wide, seed 0: method.rank: 1000 exceeds the 64x64 matrix")
    assert err.splitlines()[2] == "error: 2 runs failed; the same command tries them again"
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert lines["method"].split() == [
        *("method", "trained", "accuracy", "peak", "memory", "training", "adapter", "lr", "latency")
    ]
    assert "1,024 " in lines["lora"]
    assert " ± " in lines["lora"]
    assert " 0.01 " in lines["lora"]
    assert " 0.002 " in lines["full"]
    assert lines["wide"].split()[1] == "failed"
    assert "over 2 seeds" in said

    facts = json.loads((out / "compare.json").read_text())
    assert [(run["method"], run["seed"], run["status"]) for run in facts["runs"]] == [
        ("lora", 0, "complete"), ("full", 0, "complete"), ("wide", 0, "failed"),
        ("lora", 1, "complete"), ("full", 1, "complete"), ("wide", 1, "failed"),
    ]  # fmt: skip
    lora, full, wide = facts["methods"]
    assert [run["report"]["steps"] for run in facts["runs"] if run["report"]] == [3, 2, 3, 2]
    values = [run["report"]["metrics"]["validation"]["accuracy"] for run in facts["runs"] if run["method"] == "lora"]
    assert lora["metrics"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert lora["metrics"]["accuracy"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert lora["parameters"] == 1024
    assert full["parameters"] > 10_000
    assert isinstance(lora["latency"], float)
    assert wide["runs"] == 0
    assert wide["latency"] is None
    assert "largest rank is 64" in wide["failures"][0]

    text = (out / "compare.md").read_text()
    assert text.startswith("# small: methods compared\n\n| method | trained | accuracy |")
    assert "| wide | failed | – |" in text
    assert "Failed: wide, seed 1: method.rank" in text
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "compare.svg").read_text().startswith("<svg")

    before = stamps(out)
    assert set(before) == {"lora-seed0", "lora-seed1", "full-seed0", "full-seed1"}
    (out / "runs/full-seed1/report.json").unlink()
    code, said, _ = command(capsys, *words[:4], "lora,full", *words[5:], "--jobs", 2)
    assert code == 0
    assert "3 of 4 runs were finished before" in said
    after = stamps(out)
    assert [name for name in before if after[name] != before[name]] == ["full-seed1"]
    again = json.loads((out / "compare.json").read_text())
    assert [method["metrics"] for method in again["methods"]] == [lora["metrics"], full["metrics"]]

    code, _, err = command(capsys, *words[:2], "train.epochs=2", *words[3:])
    assert code == 2
    assert "lora-seed0, lora-seed1 (2 in all) have been trained by other recipes" in err, "full counts steps"
    assert stamps(out) == after
    code, _, _ = command(capsys, *words[:2], "train.epochs=2", "--methods", "full", "--out", out, "--overwrite")
    assert code == 0
    assert set(stamps(out)) == {"full-seed0"}


def test_text_and_several_metrics(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    file = recipe_file(tmp_path, tiny("gpt2"), "completion")
    metrics = metrics_of(read(file, []).recipe)
    assert 1 < len(metrics) <= 3
    words = ("compare", file, "train.epochs=null", "train.steps=1", "--methods", "prelayer", "--out", tmp_path / "out")
    code, said, err = command(capsys, *words)
    assert code == 0, err
    assert all(f"  {metric}  " in said for metric in metrics)
    assert "one seed" in said
    assert "±" not in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--methods", "lora,fulll"], 'did you mean "full"?'),
        (["--methods", ""], "names none"),
        (["--methods", "lora", "train.lr=no"], "train.lr"),
        (["--methods", "full+bitfit"], "full+bitfit: "),
        (["--methods", "lora", "--jobs", "0"], "'--jobs'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    code, _, err = command(capsys, "compare", recipe_file(tmp_path, tiny("bert")), *words, "--out", tmp_path / "out")
    assert code == 2
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_left_alone(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe_file(tmp_path / "there", tiny("bert"))
    words = ("compare", file, "--methods", "lora", "--out", tmp_path / "there", "--overwrite")
    code, _, err = command(capsys, *words)
    assert code == 2
    assert "exists and is no comparison" in err
    assert file.is_file()


def jobs(folder: Path, base: Path, *names: str) -> list[Job]:
    given = read(recipe_file(folder, base), [])
    return [Job(name, 0, recipe_for(given, name, 0), folder / "out") for name in names]


def test_a_row_with_one_failure_of_two_and_an_undefined_metric() -> None:
    half = Row("lora", 1e-4, 1234, {"accuracy": (0.5, None)}, 2**30, 61.0, 2048, 1, ("seed 1: oh",), 0.031)
    none = Row("full", 2e-5, 5, {"accuracy": (float("nan"), None)}, 2**30, 61.0, 2048, 2)
    _, rows = table([half, none], ["accuracy"])
    assert rows[0] == ["lora (1 failed)", "1,234", "50.00", "1.0 GiB", "61.0 s", "2.0 KiB", "0.0001", "+3.1 %"]
    assert rows[1][2] == "undefined"
    assert rows[1][-1] == "–"


def test_steps_of_the_total(tmp_path: Path, tiny: Tiny) -> None:
    (job,) = jobs(tmp_path, tiny("bert"), "lora")
    assert job.progress() == "0"
    job.run.mkdir(parents=True)
    job.log.parent.mkdir(parents=True)
    (job.run / "metrics.jsonl").write_text('{"kind": "log", "step": 7}\n{"kind": "eval", "step": 7}\n{"kind": "lo')
    assert job.progress() == "7"
    job.log.write_text("tokenise  3/50 rows\nstep 5 of 60  validation  accuracy 50.00\n")
    assert job.progress() == "7/60"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_run_and_the_same_command_continues(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    file, out = recipe_file(tmp_path, tiny("bert")), tmp_path / "out"
    long = ["compare", str(file), "train.epochs=3000", "--methods", "lora", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "lorakit", *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run = out / "runs/lora-seed0"
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert err == "stopped; finished runs are kept, the others saved. The same command continues\n"
    assert "stopped after step" in (out / "logs/lora-seed0.log").read_text()
    assert not (run / "report.json").exists()
    steps = [int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lorakit", *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = out / "logs/lora-seed0.log"
    while process.poll() is None and "resuming after step" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=120)
    assert f"resuming after step {max(steps)} of 9000" in log.read_text()


def test_the_recipe_of_a_run_is_the_one_that_is_written(tmp_path: Path, tiny: Tiny) -> None:
    (job,) = jobs(tmp_path, tiny("bert"), "lora")
    assert job.same()
    assert not job.done()
    job.file.parent.mkdir(parents=True)
    job.file.write_text(dump(job.recipe))
    job.run.mkdir(parents=True)
    (job.run / "report.json").write_text('{"status": "complete"}')
    assert job.done()
    job.file.write_text(dump(job.recipe) + "\n")
    assert not job.done()
    job.file.write_text(dump(job.recipe))
    (job.run / "report.json").write_text("{")
    assert not job.done()

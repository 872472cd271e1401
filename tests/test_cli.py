import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import files, recipe_file, report
from small_runs import run as train_run

from lorakit import __version__
from lorakit.cli import app, main
from lorakit.recipe import load
from lorakit.tiny import make_tiny_base

Tiny = Callable[[str], Path]
COMMANDS = ["train", "eval", "predict", "merge", "export", "plan", "init", "report", "score", "schema"]
COMMANDS += ["compare", "latency", "sweep", "reproduce", "import", "combine", "analyze"]


class Cli:
    """lorakit's command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        return int(raised.value.code or 0), out, err

    def fails(self, code: int, *arguments: object) -> list[str]:
        """The messages of a command that must fail with `code`, one a line, and nothing else."""
        found, _, err = self(*arguments)
        assert found == code, err
        assert "Traceback" not in err
        lines = err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines), err
        return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], one_thread: None) -> Cli:
    return Cli(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A finished run (with a base of its own beside it); tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(tiny("bert"), folder / "base")
    train_run(load(recipe_file(folder, folder / "base", train={"select": "last"})), folder / "run")
    return folder / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edited(file: Path, **changes: Any) -> Path:
    """Keys (`train__lr`) of a recipe file replaced."""
    data = json.loads(file.read_text())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        data[section][key] = value
    file.write_text(json.dumps(data, indent=1))
    return file


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli: Cli, command: str) -> None:
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: lorakit" in out
    assert "\033" not in out


def test_help_names_every_command(cli: Cli) -> None:
    shown = [info for info in app.registered_commands if not info.hidden]
    registered = {info.name or getattr(info.callback, "__name__", "") for info in shown}
    assert registered == set(COMMANDS)
    _, out, _ = cli("--help")
    assert all(command in out for command in COMMANDS)


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"lorakit {__version__}\n", "")


# What takes seconds to import. Recipes are read without torch too; what opens a run needs it.
HEAVY = {"transformers", "datasets", "accelerate", "pyarrow", "sklearn", "scipy", "matplotlib", "pandas", "peft"}


@pytest.mark.parametrize(
    ("arguments", "code", "torch"),
    [
        (["--help"], 0, False),
        (["train", "--help"], 0, False),
        (["init", "--help"], 0, False),
        (["frobnicate"], 2, False),
        (["report", "no-such-run"], 1, False),
        (["score", "samsum", "--predictions", "no.txt", "--references", "no.jsonl"], 1, False),
        (["schema"], 0, False),
        (["train", "recipe.yaml", "train.lrr=1"], 2, False),
        (["plan", "recipe.yaml", "train.lrr=1"], 2, False),
        (["compare", "recipe.yaml", "train.lrr=1", "--methods", "lora"], 2, False),
        (["latency", "recipe.yaml", "train.lrr=1", "--methods", "lora"], 2, False),
        (["reproduce", "recipe.yaml", "train.lrr=1"], 2, False),
        (["check", "resume", "recipe.yaml", "train.lrr=1"], 2, False),
        (["merge", "no-such-run", "--out", "there"], 1, True),
    ],
)
def test_what_does_no_work_loads_nothing_heavy(tmp_path: Path, arguments: list[str], code: int, torch: bool) -> None:
    recipe_file(tmp_path, Path("base"))
    refused = HEAVY | (set() if torch else {"torch", "numpy"})
    script = f"""
import sys
from lorakit.cli import main
try:
    main({arguments!r})
except SystemExit as done:
    print(done.code or 0, sorted({refused!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == f"{code} []", done.stderr


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["train"], ["train", "x.yaml", "--frob"], ["merge", "run"], ["merge", "r", "--verify",
    "maybe", "--out", "o"]],
)  # fmt: skip
def test_usage_errors(cli: Cli, arguments: list[str]) -> None:
    code, _, err = cli(*arguments)
    assert code == 2
    assert "Error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train__lrr", 1, 'train.lrr: unknown key; did you mean "lr"?'),
        ("method__name", "lroa", 'method.name: got "lroa"; did you mean "lora"?'),
        ("train__schedule", "liner", 'train.schedule: got "liner"; did you mean "linear"?'),
        ("method__rank", "8", 'method.rank: got "8"; allowed: a whole number'),
        ("method__rank", True, "method.rank: got true"),
        ("method__rank", 0, "method.rank: got 0"),
        ("train__lr", -1, "train.lr: got -1"),
        ("train__select", "acuracy", 'train.select: got "acuracy"; did you mean "accuracy"?'),
    ],
)
def test_a_bad_recipe(cli: Cli, tmp_path: Path, tiny: Tiny, key: str, value: Any, expected: str) -> None:
    file = edited(recipe_file(tmp_path, tiny("bert")), **{key: value})
    (message,) = cli.fails(2, "train", file, "--out", tmp_path / "run")
    assert message.startswith(f"{file}:")
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_recipe_at_once(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    file = edited(recipe_file(tmp_path, tiny("bert")), train__lrr=1, method__rank="8", task__kind="chatt")
    assert len(cli.fails(2, "train", file, "method.alpha=none")) == 4


def test_duplicate_keys(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("train:\n  lr: 1\n  lr: 2\n")
    (message,) = cli.fails(2, "train", file)
    assert "lr" in message
    assert f"{file}:3" in message


def test_a_recipe_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    (message,) = cli.fails(2, "train", tmp_path / "none.yaml")
    assert "none.yaml" in message


def test_overrides_reach_the_run(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    file = recipe_file(tmp_path, tiny("bert"))
    code, out, _ = cli("train", file, "train.seed=7", "method.rank=3", "--out", tmp_path / "run")
    assert code == 0
    assert "\033" not in out
    found = report(tmp_path / "run")
    assert (found["seed"], found["recipe"]["method"]["rank"]) == (7, 3)


@pytest.mark.parametrize("text", ["train.lrr=1", "lr", "train.lr=abc", "=3"])
def test_bad_overrides(cli: Cli, tmp_path: Path, tiny: Tiny, text: str) -> None:
    (message,) = cli.fails(2, "train", recipe_file(tmp_path, tiny("bert")), text)
    assert "command line" in message


def test_a_target_that_matches_nothing(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    file = recipe_file(tmp_path, tiny("bert"), method={"targets": ["q", "frob"]})
    (message,) = cli.fails(2, "train", file, "--out", tmp_path / "run")
    assert "frob" in message
    assert not (tmp_path / "run").exists()


def test_a_rank_above_the_matrix(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    messages = cli.fails(2, "train", recipe_file(tmp_path, tiny("bert"), method={"rank": 1000}))
    assert all("1000" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("", "no row"),
        ('{"text": "a", "label": "good"}\n{"text": \n', "train.jsonl:2"),
        ('{"text": "a"}\n', "label"),
        ('{"text": 3, "label": "good"}\n', "text"),
        ("\0\1\2", "train.jsonl:1"),
    ],
)
def test_a_bad_data_file(cli: Cli, tmp_path: Path, tiny: Tiny, content: str | None, expected: str) -> None:
    file = recipe_file(tmp_path, tiny("bert"), task={"labels": ["bad", "good"]})
    data = tmp_path / "train.jsonl"
    data.unlink()
    if content is not None:
        data.write_text(content)
    (message,) = cli.fails(1, "train", file, "--out", tmp_path / "run")
    assert "train.jsonl" in message
    assert expected in message
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_labels(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    file = recipe_file(tmp_path, tiny("bert"), task={"labels": ["good", "fair"]})
    (message,) = cli.fails(1, "train", file, "--out", tmp_path / "run")
    assert '"bad"' in message or "bad" in message
    assert "good, fair" in message


def test_a_base_that_does_not_exist(cli: Cli, tmp_path: Path) -> None:
    (message,) = cli.fails(1, "train", recipe_file(tmp_path, tmp_path / "nowhere"))
    assert "nowhere" in message
    assert "no such file or directory" in message


def test_a_base_with_another_head(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = tmp_path / "three"
    AutoModelForSequenceClassification.from_pretrained(tiny("bert"), num_labels=3).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(base)
    (message,) = cli.fails(1, "train", recipe_file(tmp_path / "d", base))
    assert "classifier.weight: (3, 64) in the files, (2, 64) needed" in message


def test_an_encoder_cannot_generate(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    (message,) = cli.fails(1, "train", recipe_file(tmp_path, tiny("bert"), "completion"))
    assert "cannot generate" in message


def test_a_run_that_exists(cli: Cli, copied: Path, trained: Path) -> None:
    (message,) = cli.fails(2, "train", trained.parent / "recipe.yaml", "--out", copied)
    assert "--resume" in message
    assert "--overwrite" in message


def test_resume_with_another_recipe(cli: Cli, copied: Path, trained: Path) -> None:
    (message,) = cli.fails(1, "train", trained.parent / "recipe.yaml", "train.lr=0.5", "--out", copied, "--resume")
    assert "train.lr was 0.01 and is 0.5 now" in message


@pytest.mark.parametrize("command", [["eval"], ["predict", "--split", "validation"], ["merge", "--out", "o"]])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [("truncated", "truncated"), ("noise", "safetensors"), ("missing", "has not finished"), ("no run", "recipe.yaml")],
)
def test_a_bad_adapter(
    cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], damage: str, expected: str
) -> None:
    monkeypatch.chdir(copied.parent)
    file = copied / "adapter.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "noise":
        file.write_bytes(os.urandom(8) + b"\xff" * 500)
    elif damage == "missing":
        file.unlink()
    else:
        (copied / "recipe.yaml").unlink()
    (message,) = cli.fails(1, command[0], copied, *command[1:])
    assert expected in message


@pytest.mark.parametrize("command", [["eval"], ["merge", "--out", "o"], ["export", "--to", "peft", "--out", "o"]])
def test_an_adapter_of_another_base(
    cli: Cli, trained: Path, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained.parent / "base", tmp_path / "base")
    edited_recipe = (tmp_path / "run/recipe.yaml").read_text().replace(str(trained.parent / "base"), "base")
    (tmp_path / "run/recipe.yaml").write_text(edited_recipe.replace("base: base", "base: ./base"))
    make_tiny_base("bert", tmp_path / "base", seed=1)
    (message,) = cli.fails(1, command[0], "run", *command[1:])
    assert "trained on another base" in message
    assert not (tmp_path / "o").exists()


def test_a_checkpoint_that_is_not_there(cli: Cli, trained: Path) -> None:
    (message,) = cli.fails(1, "eval", trained, "--checkpoint", "step-5")
    assert "there are: step-6" in message


def test_a_full_disk_leaves_earlier_files_readable(
    cli: Cli, copied: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {name: (copied / name).read_bytes() for name in files(copied)}
    monkeypatch.setattr(os, "fsync", full)
    for command in (["eval", copied], ["merge", copied, "--out", copied.parent / "merged"],
                    ["train", trained.parent / "recipe.yaml", "--out", copied.parent / "new"]):  # fmt: skip
        (message,) = cli.fails(1, *command)
        assert "No space left on device" in message
        assert "MiB free there" in message
    assert {name: (copied / name).read_bytes() for name in files(copied)} == before
    assert not (copied.parent / "merged").exists()
    assert not list(copied.parent.glob(".*"))


def test_eval_finds_exactly_what_train_found(cli: Cli, copied: Path) -> None:
    found = report(copied)["metrics"]["validation"]
    predictions = (copied / "predictions/validation.jsonl").read_bytes()
    shutil.rmtree(copied / "checkpoints")
    shutil.rmtree(copied / "predictions")
    (copied / "metrics.jsonl").unlink()
    (copied / "report.json").unlink()
    code, out, err = cli("eval", copied, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"split": "validation", "metrics": found, "notes": []}
    assert (copied / "predictions/validation.jsonl").read_bytes() == predictions


def test_eval_finds_what_train_found_with_label_smoothing(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    file = recipe_file(tmp_path, tiny("gpt2"), "completion", train={"label_smoothing": 0.3})
    train_run(load(file), tmp_path / "run")
    _, out, _ = cli("eval", tmp_path / "run", "--json")
    assert json.loads(out)["metrics"] == report(tmp_path / "run")["metrics"]["validation"]


def test_eval_of_base_checkpoint_and_merged(cli: Cli, copied: Path) -> None:
    merged = copied.parent / "merged"
    assert cli("merge", copied, "--out", merged)[0] == 0
    found = {}
    for name, options in {"adapter": [], "checkpoint": ["--checkpoint", "step-6"], "merged": ["--merged", merged],
                          "base": ["--base"]}.items():  # fmt: skip
        code, out, err = cli("eval", copied, "--json", *options)
        assert code == 0, err
        found[name] = json.loads(out)["metrics"]["loss"]
    assert found["checkpoint"] == found["adapter"]
    assert found["merged"] == pytest.approx(found["adapter"], abs=1e-5)
    assert found["base"] != pytest.approx(found["adapter"], abs=1e-5)
    assert {path.name for path in (copied / "predictions").iterdir()} == {
        "validation.jsonl", "step-6-validation.jsonl", "merged-validation.jsonl", "base-validation.jsonl",
    }  # fmt: skip


def test_eval_prints_a_plain_table(cli: Cli, copied: Path) -> None:
    code, out, _ = cli("eval", copied)
    assert code == 0
    assert "\033" not in out
    value = report(copied)["metrics"]["validation"]["accuracy"]
    assert f"accuracy  {100 * value:.2f}" in out


def test_eval_refuses(cli: Cli, copied: Path, tmp_path: Path) -> None:
    (message,) = cli.fails(2, "eval", copied, "--merged", tmp_path, "--base")
    assert "exclude each other" in message
    (message,) = cli.fails(1, "eval", copied, "--split", "tset")
    assert "train, validation" in message
    (message,) = cli.fails(1, "eval", copied, "--merged", tmp_path)
    assert "config.json" in message


def test_eval_of_a_split_without_labels(cli: Cli, tmp_path: Path, tiny: Tiny) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"text": "The soup was splendid."}\n')
    train_run(load(recipe_file(tmp_path, tiny("bert"), task={"test": str(test)})), tmp_path / "run")
    (message,) = cli.fails(1, "eval", tmp_path / "run", "--split", "test")
    assert "no labels" in message
    code, out, _ = cli("predict", tmp_path / "run", "--split", "test")
    assert code == 0
    assert json.loads(out)["prediction"] in ("bad", "good")


def test_predict_wants_one_source(cli: Cli, trained: Path) -> None:
    for options in ([], ["--split", "validation", "--input", "x"]):
        (message,) = cli.fails(2, "predict", trained, *options)
        assert "--input or --split" in message


def test_an_unknown_export_format(cli: Cli, trained: Path, tmp_path: Path) -> None:
    (message,) = cli.fails(2, "export", trained, "--to", "gguff", "--out", tmp_path / "o")
    assert "peft" in message


def test_an_export_of_a_lower_rank(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    code, shown, _ = cli("export", trained, "--to", "peft", "--out", out, "--rank", 1, "--license", "mit")
    assert code == 0
    assert "modules cut to rank 1" in shown
    assert "relative error of ΔW by that" in shown
    assert "license: mit" in (out / "README.md").read_text()
    (message,) = cli.fails(1, "export", trained, "--to", "gguf", "--out", tmp_path / "x")
    assert message.startswith("bert: no GGUF adapters")
    assert cli("export", trained, "--to", "peft", "--out", tmp_path / "x", "--rank", 0)[0] == 2
    assert not (tmp_path / "x").exists()


def test_debug_shows_the_traceback(cli: Cli, tmp_path: Path) -> None:
    for arguments in (["train", tmp_path / "none.yaml", "--debug"], ["--debug", "train", tmp_path / "none.yaml"]):
        code, _, err = cli(*arguments)
        assert code == 2
        assert "Traceback" in err


def test_a_mistake_of_ours_is_one_line_too(cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("lorakit.session.open_session", broken)
    (message,) = cli.fails(1, "eval", copied)
    assert message == "unexpected ZeroDivisionError: division by zero; --debug shows where"
    assert "Traceback" in cli("eval", copied, "--debug")[2]


def test_ctrl_c_before_there_is_anything_to_save(cli: Cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorakit.session.open_session", interrupted)
    code, _, err = cli("eval", copied)
    assert code == 130
    assert "Traceback" not in err


def test_report_makes_the_pages_again(cli: Cli, copied: Path, tmp_path: Path) -> None:
    (copied / "report.html").unlink()
    code, out, _ = cli("report", copied)
    assert (code, out) == (0, f"written: {copied / 'report.html'}\n")
    assert (copied / "report.html").is_file()
    (message,) = cli.fails(1, "report", tmp_path / "none")
    assert "not a run directory, or the run has not finished" in message


def test_schema_is_the_recipe_s(cli: Cli) -> None:
    from lorakit.recipe import json_schema

    code, out, _ = cli("schema")
    assert code == 0
    assert json.loads(out) == json_schema()


def test_smoke_leaves_nothing_behind(cli: Cli, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = recipe_file(tmp_path / "d", tiny("bert"))
    code, out, err = cli("train", file, "--smoke")
    assert code == 0, err
    assert "smoke: small: trained 2 steps" in out
    assert {path.name for path in tmp_path.iterdir()} == {"d"}


@pytest.mark.parametrize(
    ("processes", "arguments", "code"), [(1, "--version", 0), (2, "--version", 0), (2, "nonsense", 2)]
)
def test_one_of_several_processes_ends_at_once(processes: int, arguments: str, code: int) -> None:
    """All is printed, and nothing of the interpreter is taken apart: torch's threads may outlive it."""
    program = f"import atexit, sys; atexit.register(print, 'late'); sys.argv = ['lorakit', '{arguments}']; "
    done = subprocess.run(
        [sys.executable, "-c", program + "from lorakit.cli import main; main()"],
        env={**os.environ, "WORLD_SIZE": str(processes)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout or done.stderr
    assert ("late" in done.stdout) is (processes == 1)

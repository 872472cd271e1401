"""The commands that README.md shows are run, in the order in which they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from lorakit.cli import main
from lorakit.recipe import load
from lorakit.schedule import Train
from lorakit.tasks.made_up import text_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def commands(text: str) -> list[list[str]]:
    r"""The words of every `lorakit …` line in a fence; `\` ends a line that goes on, `$ ` may begin one."""
    lines = [line for fence in FENCE.findall(text) for line in fence.replace("\\\n", " ").splitlines()]
    shown = [line.strip().removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in shown if line.startswith("lorakit ")]


def smoked(words: list[str]) -> list[str]:
    """A `train` command on a tiny model: without what belongs to a real run directory."""
    kept, skip = [], False
    for word in words:
        if skip or word in ("--resume", "--overwrite", "--smoke"):
            skip = False
        elif word == "--out":
            skip = True
        else:
            kept.append(word)
    return [*kept, "--smoke"]


def write_mrpc(folder: Path) -> None:
    """Our own rows in the layout of MRPC."""
    folder.mkdir(parents=True)
    header = {"train.tsv": "Quality", "dev.tsv": "Quality", "test.tsv": "index"}
    for seed, (name, first) in enumerate(header.items()):
        lines = [f"{first}\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for number, row in enumerate(text_rows(12, seed, [0, 1], pair=True)):
            value = number if first == "index" else getattr(row, "label", None)
            lines.append(f"{value}\t1\t2\t{getattr(row, 'text', '')}\t{getattr(row, 'pair', '')}")
        (folder / name).write_text("\n".join(lines) + "\n")


def finished_run(folder: Path, base: Path, out: Path) -> None:
    """A run of the MRPC recipe on a tiny base."""
    from small_runs import run

    recipe = load(ROOT / "recipes/minilm_mrpc.yaml", [f"task.path={folder}", f"model.base={base}"])
    schedule = Train(steps=2, batch_size=4, lr=0.01, eval_every=2, save_every=2)
    run(recipe.model_copy(update={"train": schedule}), out)


def succeeds(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    assert not done.value.code, f"lorakit {shlex.join(words)}\n{capsys.readouterr().err}"


def test_the_extractor() -> None:
    first = "```\nlorakit a b  # c\n$ lorakit d \\\n  --e 'f g'\nmake demo\n```\n"
    text = f"`lorakit no`\n{first}lorakit no\n```sh\nlorakit h\n```"
    assert commands(text) == [["a", "b"], ["d", "--e", "f g"], ["h"]]
    assert smoked(["train", "r", "--out", "x", "k=v", "--resume"]) == ["train", "r", "k=v", "--smoke"]


def test_every_command_of_the_readme_works(
    tmp_path: Path, tiny: object, one_thread: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(README.read_text())
    names = {words[0] for words in found}
    assert {"train", "eval", "merge", "export", "predict"} <= names
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    write_mrpc(tmp_path / "data/glue/MRPC")
    for run in sorted({word for words in found for word in words[1:] if word.startswith("runs/")}):
        finished_run(tmp_path / "data/glue", tiny("bert"), tmp_path / run)  # type: ignore[operator]
    done: set[str] = set()
    for words in found:
        command = smoked(words) if words[0] == "train" else words
        if shlex.join(command) not in done:
            succeeds(command, capsys)
            done.add(shlex.join(command))


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(FENCE.findall(README.read_text())), re.MULTILINE))
    assert named
    assert named <= targets


def test_every_file_that_the_readme_links_to_exists() -> None:
    missing = [link for link in LINK.findall(README.read_text()) if not (ROOT / link).exists()]
    assert not missing

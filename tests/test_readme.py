"""What the documents say: the README's commands are run, in their order; the other pages' are checked."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from lorakit import yamltree
from lorakit.cli import app, main
from lorakit.errors import RecipeError
from lorakit.recipe import load
from lorakit.schedule import Train
from lorakit.tasks.made_up import text_rows

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")
INLINE = re.compile(r"`lorakit ([a-z]+)[^`]*`")
RECIPE = """
model: {base: FacebookAI/roberta-base}
method: {name: lora}
task: {name: glue, subset: mrpc}
train: {epochs: 1, batch_size: 16, lr: 5e-4}
"""


def outcomes(text: str) -> list[tuple[list[str], str]]:
    r"""The words of every `lorakit …` line in a fence, and the line below it; `\` ends a line that goes on."""
    found = []
    for _, fence in FENCE.findall(text):
        lines = [line.strip() for line in fence.replace("\\\n", " ").splitlines()]
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            if line.removeprefix("$ ").startswith("lorakit "):
                command = line.removeprefix("$ ").partition(" > ")[0]
                found.append((shlex.split(command, comments=True)[1:], below))
    return found


def commands(text: str) -> list[list[str]]:
    """The words of every `lorakit …` line in a fence."""
    return [words for words, _ in outcomes(text)]


def anchors(page: str) -> set[str]:
    """What a link may name behind `#`: headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


def write_reviews(file: Path) -> None:
    """Texts of our own with a class."""
    rows = text_rows(60, 0, [0, 1], pair=False)
    lines = [f"{getattr(row, 'text', '')},{['bad', 'good'][getattr(row, 'label', 0)]}" for row in rows]
    file.write_text("\n".join(["review,sentiment", *lines]) + "\n")


def finished_run(folder: Path, base: Path, out: Path) -> None:
    """A run of the MRPC recipe on a tiny base."""
    from small_runs import run

    changes = [f"task.path={folder}", f"model.base={base}", "task.limit={test: 12}"]  # GLUE's own test has 1,725 rows
    recipe = load(ROOT / "recipes/minilm_mrpc.yaml", changes)
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
    assert {"init", "plan", "train", "eval", "merge", "export", "predict", "report", "score"} <= names
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    write_mrpc(tmp_path / "data/glue/MRPC")
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/MRPC.tsv").write_text("index\tprediction\n" + "".join(f"{i}\t{i % 2}\n" for i in range(12)))
    base = tiny("bert")  # type: ignore[operator]
    for run in sorted({word for words in found for word in words[1:] if word.startswith("runs/")}):
        finished_run(tmp_path / "data/glue", base, tmp_path / run)
    done: set[str] = set()
    for words in found:
        command = smoked(words) if words[0] == "train" else words
        if words[0] == "plan":
            command = [*words, f"model.base={base}"]
        if shlex.join(command) not in done:
            succeeds(command, capsys)
            done.add(shlex.join(command))


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(
        re.findall(r"^make ([a-z-]+)", "\n".join(text for _, text in FENCE.findall(README.read_text())), re.MULTILINE)
    )
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for path, anchor in LINK.findall(page.read_text()):
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            lost.append(f"{path}#{anchor}")
    assert not lost


def test_the_index_names_every_guide() -> None:
    index = ROOT / "docs/README.md"
    linked = {path for path, _ in LINK.findall(index.read_text())}
    assert {page.name for page in PAGES if page.parent == index.parent} - {index.name} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_have_these_options(page: Path) -> None:
    there = get_command(app).commands  # type: ignore[attr-defined]
    text = page.read_text()
    assert set(INLINE.findall(text)) <= set(there)
    for words in commands(text):
        if not words[0].startswith("--"):
            there[words[0]].make_context(words[0], words[1:])  # raises where an option or an argument is wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_overrides_are_keys_of_a_recipe(page: Path) -> None:
    for words, below in outcomes(page.read_text()):
        if words[0] not in ("train", "plan") or not (ROOT / words[1]).is_file():
            continue
        overrides = [word for word in words[2:] if re.match(r"[a-z_.]+=", word)]
        if below.startswith("error: command line"):
            with pytest.raises(RecipeError):
                load(ROOT / words[1], overrides)
        else:
            load(ROOT / words[1], overrides)


def completed(part: str) -> str:
    """A recipe of which a document shows some sections, or some keys of one."""
    whole, shown = yamltree.parse(RECIPE.encode(), "a.yaml").data, yamltree.parse(part.encode(), "b.yaml").data
    for name, section in shown.items():
        named = not isinstance(section, dict) or "name" in section
        whole[name] = section if named else whole.get(name, {}) | section
    return yamltree.render(whole)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_in_the_text_are_recipes(page: Path, tmp_path: Path) -> None:
    for number, (language, part) in enumerate(FENCE.findall(page.read_text())):
        if language == "yaml" and re.search(r"^\w", part, re.MULTILINE):
            file = tmp_path / f"recipe{number}.yaml"
            file.write_text(completed(part))
            load(file)


def test_the_checks_can_fail(tmp_path: Path) -> None:
    assert "a-b-c" in anchors("# A b: `c`")
    assert LINK.findall("[x](a.md#b) [y](https://z)") == [("a.md", "b")]
    assert INLINE.findall("`lorakit nonesuch RUN`") == ["nonesuch"]
    (tmp_path / "r.yaml").write_text(completed("train:\n  lrr: 1\n"))
    with pytest.raises(RecipeError, match="lrr"):
        load(tmp_path / "r.yaml")

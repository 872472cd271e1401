"""Files from strangers: nothing in them runs, and nothing in them leads out of where they are.

Bounds of the YAML reader: tests/test_yamltree.py. Braces in templates: tests/tasks/test_template.py. Markup in reports:
tests/report.
"""

import ast
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import recipe_file, run, small_recipe

from lorakit.bases import locate
from lorakit.checkpoint import adapter_file, open_run, read_adapter
from lorakit.cli import main
from lorakit.console import print_errors
from lorakit.data.hub import parse_source
from lorakit.errors import CheckpointError, LorakitError, ModelError
from lorakit.recipe import load
from lorakit.smoke import model_type_of
from lorakit.training.state import newest_checkpoint

Tiny = Callable[[str], Path]
PACKAGE = Path(__file__).parents[1] / "lorakit"


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.file),)


def test_a_pickled_base_runs_nothing(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny("bert").iterdir():
        if file.suffix != ".safetensors":
            (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tiny("bert") / "model.safetensors")
    torch.save({**tensors, "extra": Bomb(tmp_path / "exploded")}, base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not a readable checkpoint"):
        locate(str(base))
    assert not (tmp_path / "exploded").exists()
    torch.load(base / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "exploded").exists(), "the bomb works"


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
def test_pickles_in_a_checkpoint_are_no_checkpoint(tmp_path: Path, tiny: Tiny, name: str) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"select": "last"}), tmp_path / "run")
    file = next((tmp_path / "run/checkpoints").glob(f"*/{name}"))
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert newest_checkpoint(tmp_path / "run") is None
    assert not (tmp_path / "exploded").exists()


def remote(tmp_path: Path, tiny: Tiny) -> Path:
    """A base that brings code of its own, which makes a file where it is imported."""
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny("bert").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (base / "config.json").write_text(json.dumps({**config, "model_type": "strange", "auto_map": names}))
    (base / "code.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    return base


def test_code_of_a_base_does_not_run(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked: on a terminal transformers would."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    base = remote(tmp_path, tiny)
    file = recipe_file(tmp_path / "recipe", base)
    for words in (
        ["train", str(file), "--out", str(tmp_path / "run")],
        ["plan", str(file)],
        ["train", str(file), "--smoke"],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 1, words
    with pytest.raises(ModelError):
        model_type_of(str(base), None)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "base",
    ["package:json/../os.py", "package:json//etc", "package:os.path", "package:../json", "package:json/a/../../b"],
)
def test_packages_cannot_be_left(base: str) -> None:
    with pytest.raises(ModelError):
        locate(base)


@pytest.mark.parametrize("text", ["hub:../data", "hub:./x", "hub:/etc/passwd", "hub:a/../b", "hub:~/x", "hub:a/.."])
def test_hub_sources_are_no_paths(text: str) -> None:
    with pytest.raises(ValueError, match="no hub source"):
        parse_source(text, "train")


@pytest.mark.parametrize(
    "checkpoint", ["..", ".", "../checkpoints/step-6", "step-6/../step-6", "step-", "/", "step-6/"]
)
def test_checkpoints_are_names(tmp_path: Path, tiny: Tiny, checkpoint: str) -> None:
    run(small_recipe(tmp_path, tiny("bert"), train={"select": "last"}), tmp_path / "run")
    assert adapter_file(tmp_path / "run", "step-6").is_file()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        adapter_file(tmp_path / "run", checkpoint)


def test_a_header_cannot_ask_for_the_whole_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for length in (2**63, 2**40, 2**33):
        file.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointError, match="longer than the file"):
            read_adapter(file)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError):
        read_adapter(file)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 1, "methods": [{"name": "__class__"}]},
        {"format": 1, "methods": [{"name": "lora", "rank": "__import__('os')"}]},
        {"format": 1, "methods": "lora"},
        {"format": 1, "methods": [{"name": "lora", "unheard": 1}]},
    ],
)
def test_an_adapter_s_metadata_is_checked_like_a_recipe(tmp_path: Path, tiny: Tiny, fields: dict[str, Any]) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    file = tmp_path / "run/adapter.safetensors"
    state, provenance = read_adapter(file)
    whole = {"base": provenance.base, "revision": None, "fingerprint": provenance.fingerprint, **fields}
    save_file(state, file, metadata={"lorakit": json.dumps(whole)})
    with pytest.raises(CheckpointError):
        open_run(tmp_path / "run")


def test_values_of_a_recipe_are_text_and_not_code(tmp_path: Path, tiny: Tiny) -> None:
    """Shell, format and environment syntax stays what it is."""
    for syntax in ("$HOME/x", "`id`", "$(id)", "{0.__class__}", "%(x)s", "${HOME}"):
        text = f"{syntax}.jsonl"
        file = recipe_file(tmp_path, tiny("bert"), task={"test": text})
        assert load(file).task.test == text
        with pytest.raises(LorakitError) as raised:
            load(file).task.load("test")
        assert text in str(raised.value), "the file of this very name"


def test_a_message_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_errors(["trained on \x1b[2J\x1b]0;owned\x07 and \r\x08 é 中\nsecond line"], "error: ")
    assert capsys.readouterr().err == "error: trained on \\x1b[2J\\x1b]0;owned\\x07 and \\r\\x08 é 中\nsecond line\n"


FORBIDDEN = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "runpy", "joblib"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_has_no_way_to_run_text(file: Path) -> None:
    """No eval, no pickles, no shell; `torch.load` with weights alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names}
            names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            assert not names & MODULES, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in FORBIDDEN and called not in {"os.system", "os.popen", "yaml.load"}, ast.unparse(node)
        assert keywords.get("shell", "False") == "False", ast.unparse(node)
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", ast.unparse(node)

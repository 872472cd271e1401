import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import logits, prepared, recipe_file, run

from lorakit.checkpoint import open_run, save_adapter
from lorakit.cli import main
from lorakit.recipe import load

CASES = [("bert", "classification"), ("roberta", "classification"), ("gpt2", "completion"), ("llama", "completion")]


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def recipe(request: pytest.FixtureRequest, tmp_path: Path, tiny: Callable[[str], Path]) -> Path:
    model_type, kind = request.param
    method = {"dropout": 0.1, "rank": 4, "targets": ["q", "k", "v", "o", "up", "down"]}
    return recipe_file(tmp_path, tiny(model_type), kind, method=method, train={"select": "last"})


def test_step_0_is_the_base_bit_for_bit(recipe: Path) -> None:
    adapted = prepared(recipe, methods=True)
    assert sum(len(paths) for found in adapted.coverage for paths in found.values()) >= 6
    assert torch.equal(logits(adapted.model), logits(prepared(recipe, methods=False).model))


def test_the_merged_model_is_the_adapted_one(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for command in (["train", recipe, "--out", tmp_path / "run"], ["merge", tmp_path / "run", "--out", tmp_path / "m"]):
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in command])
        assert not done.value.code, capsys.readouterr().err
    opened = open_run(tmp_path / "run")
    kind = AutoModelForCausalLM if opened.recipe.task.kind == "generation" else AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path / "m", dtype="float32")
    adapted, base = logits(opened.prepared.model), logits(prepared(recipe, methods=False).model)
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(base, adapted, rtol=1e-2, atol=1e-3), "nothing was learned, so nothing was compared"


def test_five_saves_one_hash(recipe: Path, tmp_path: Path) -> None:
    finished = run(load(recipe), tmp_path / "run")
    opened = open_run(tmp_path / "run", skeleton=True)
    hashes = {hashlib.sha256((tmp_path / "run/adapter.safetensors").read_bytes()).hexdigest()}
    for number in range(5):
        shuffled = dict(sorted(opened.state.items(), key=lambda item: hash((item[0], number))))
        save_adapter(tmp_path / f"{number}.safetensors", shuffled, finished.provenance)
        hashes.add(hashlib.sha256((tmp_path / f"{number}.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1

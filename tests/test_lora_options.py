"""Whole runs with LoRA's options: what is frozen, resuming, opening, merging and exporting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import batches, live_model, logits, open_adapted, tiny_base
from peft import PeftModel
from small_runs import recipe_file, run, same_result
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.checkpoint import open_run
from lorakit.errors import RecipeError
from lorakit.export import export
from lorakit.merge import merge
from lorakit.methods import LoRA
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.surgery import canonical, trainable_parameters
from lorakit.training.run import train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT calls the old name
]
CASES = [("bert", "classification"), ("gpt2", "generation"), ("llama", "generation")]
OPTIONS: dict[str, dict[str, Any]] = {
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "rslora": {"rslora": True, "init": "pissa"},
}


def auto(kind: str) -> Any:
    return AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_merged_is_adapted(tmp_path: Path, model_type: str, kind: str, option: str) -> None:
    base = tiny_base(tmp_path, model_type)
    method = LoRA(rank=4, alpha=12, targets=["q", "v", "up"], ranks={"v": 3}, bias="none", **OPTIONS[option])
    opened = open_adapted(base, [method], kind)
    report = merge(opened, tmp_path / "out", batches=batches())
    assert report.merged == (4 if model_type == "gpt2" else 6)
    assert report.logits is not None
    assert report.logits.lost_share < 1e-3
    merged = auto(kind).from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(live_model(opened)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_peft_computes_the_same_logits(tmp_path: Path, model_type: str, kind: str, option: str) -> None:
    base = tiny_base(tmp_path, model_type)
    method = LoRA(rank=4, alpha=12, targets=["q", "v", "up"], ranks={"v": 3}, alphas={"q": 5.0}, **OPTIONS[option])
    opened = open_adapted(base, [method], kind)
    report = export(opened, "peft", tmp_path / "out")
    assert report.max_difference < 1e-6
    options: dict[str, Any] = {} if kind == "generation" else {"num_labels": 3, "pad_token_id": 0}
    theirs: Any = PeftModel.from_pretrained(auto(kind).from_pretrained(base, **options), str(tmp_path / "out"))
    torch.testing.assert_close(logits(theirs.eval()), logits(live_model(opened)), atol=1e-5, rtol=1e-5)
    changed = any(name.endswith("lora_magnitude_vector.default.weight") for name, _ in theirs.named_parameters())
    assert changed == (option == "dora")


@pytest.mark.parametrize("option", [*OPTIONS, "loraplus"])
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_a_run_is_whole(tmp_path: Path, tiny: Callable[[str], Path], model_type: str, kind: str, option: str) -> None:
    """Frozen weights keep their bits; resumed is uninterrupted; opened again it computes the same; both merge."""
    base = tiny(model_type)
    sections: dict[str, Any] = {
        "method": {"rank": 4, "dropout": 0.1, "targets": ["q", "v", "up"], **OPTIONS.get(option, {})},
        "train": {"select": "last", "epochs": 2, "save_every": 2},
    }
    if option == "loraplus":
        sections["train"]["optimizer"] = {"name": "adamw", "lr_b_ratio": 4}
    recipe = load(recipe_file(tmp_path, base, "completion" if kind == "generation" else kind, **sections))
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    finished = run(recipe, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before
    plain = auto(kind).from_pretrained(base, dtype=torch.float32).state_dict()
    after = {canonical(name): value for name, value in finished.prepared.model.state_dict().items()}
    frozen = plain.keys() - trainable_parameters(finished.prepared.model).keys()
    assert len(frozen) > 10
    assert all(torch.equal(plain[name], after[name]) for name in frozen)
    last = open_run(tmp_path / "run", f"step-{finished.state.step}")
    assert torch.equal(logits(last.prepared.model.eval()), logits(finished.prepared.model.eval()))
    merge(last, tmp_path / "merged", batches=batches())

    again = tmp_path / "again"
    calls = 0
    real = torch.optim.AdamW.step

    class Cut(Exception):
        pass

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cut
        return real(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Cut):
            train(recipe, again, Silent())
    assert (again / "checkpoints" / "step-2").is_dir()
    run(recipe, again, resume=True)
    same_result(tmp_path / "run", again)


def test_loraplus_needs_lora(tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    file = recipe_file(tmp_path, tiny("bert"), train={"optimizer": {"lr_b_ratio": 16}})
    assert load(file).train.optimizer.lr_b_ratio == 16
    with pytest.raises(RecipeError, match=r"train.optimizer.lr_b_ratio: LoRA\+ is of LoRA's B matrices"):
        load(file, ["method={name: full}"])

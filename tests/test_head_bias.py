"""`train.head_bias`: a regression head that begins at the mean score."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import run, small_recipe
from transformers import AutoModelForSequenceClassification

from lorakit.checkpoint import open_run
from lorakit.data.rows import TextRow
from lorakit.errors import LorakitError
from lorakit.outline import outline
from lorakit.progress import Silent
from lorakit.training.setup import Run, set_up

Tiny = Callable[[str], Path]
MEAN = {"head_bias": "mean"}


def biases(prepared: Run) -> list[float]:
    """The values of all biases of the head's last layer."""
    named = prepared.prepared.model.named_parameters()
    return [p.item() for name, p in named if prepared.prepared.in_head(name) and p.shape == (1,)]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "deberta-v2", "modernbert", "distilbert"])
@pytest.mark.parametrize("method", ["lora", "full", "top_layers"])
def test_the_head_begins_at_the_mean_score(tmp_path: Path, tiny: Tiny, model_type: str, method: str) -> None:
    section = {"name": method} | ({} if method == "lora" else {"rank": "absent", "alpha": "absent"})
    recipe = small_recipe(tmp_path, tiny(model_type), "regression", train=MEAN, method=section)
    prepared = set_up(recipe, tmp_path / "run", Silent())
    labels = [float(row.label) for row in prepared.train.rows if isinstance(row, TextRow) and row.label is not None]
    assert len(set(labels)) > 1
    assert biases(prepared) == [pytest.approx(sum(labels) / len(labels), rel=1e-6)]


def test_zero_is_the_default_and_all_else_begins_the_same(tmp_path: Path, tiny: Tiny) -> None:
    states = []
    for folder, train in (("zero", {}), ("mean", MEAN)):
        made = set_up(small_recipe(tmp_path / folder, tiny("roberta"), "regression", train=train), tmp_path, Silent())
        states.append(made.prepared.model.state_dict())
    different = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
    assert different == ["classifier.out_proj.bias"] and states[0][different[0]].item() == 0


def test_the_published_head_is_the_trained_one(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), "regression", train=MEAN)
    run(recipe, tmp_path / "run")
    stored = load_file(tmp_path / "run" / "adapter.safetensors")["classifier.bias"]
    assert open_run(tmp_path / "run").prepared.model.classifier.bias.item() == stored.item()
    assert abs(stored.item() - 0.5) < 0.2  # scores of 0, 0.5 and 1; a head that begins at 0 is not there after 6 steps


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_head_without_bias_is_refused_by_plan_and_by_train(tmp_path: Path, tiny: Tiny, model_type: str) -> None:
    recipe = small_recipe(tmp_path, tiny(model_type), "regression", train=MEAN)
    wanted = f"train.head_bias: the head of a {model_type} model has no bias; set it to zero"
    with pytest.raises(LorakitError, match=wanted):
        outline(recipe, on_cuda=False)
    with pytest.raises(LorakitError, match=wanted):
        set_up(recipe, tmp_path / "run", Silent())


def test_a_trained_head_of_the_base_keeps_its_bias(tmp_path: Path, tiny: Tiny) -> None:
    base = tiny("bert")
    whole = set_up(small_recipe(tmp_path, base, "regression"), tmp_path / "run", Silent()).prepared
    whole.tokenizer.save_pretrained(tmp_path / "trained")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "trained")
    recipe = small_recipe(tmp_path, tmp_path / "trained", "regression", train=MEAN)
    with pytest.raises(LorakitError, match="comes with a trained head, which stays"):
        set_up(recipe, tmp_path / "run", Silent())

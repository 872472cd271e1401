from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import logits, moved_run
from torch import Tensor

from lorakit.adapters import Switch
from lorakit.checkpoint import open_run
from lorakit.errors import CheckpointError

Tiny = Callable[[str], Path]


def made(folder: Path, base: Path, kind: str, method: dict[str, Any]) -> Path:
    """A run whose adapter does something."""
    return moved_run(folder, base, kind, seed=len(str(method)), method=method)


def storage(model: Any) -> set[int]:
    """Where the base's own tensors lie."""
    return {value.data_ptr() for name, value in model.named_parameters() if ".update." not in name}


CASES = [
    ("bert", "classification", {"targets": ["q"]}, {"targets": ["v", "up"], "rank": 3}),
    ("roberta", "classification", {"targets": ["q", "v"], "bias": "all"}, {"targets": ["o"], "dora": True}),
    ("bert", "classification", {"targets": ["v"]}, {"name": "bitfit", "rank": "absent", "alpha": "absent"}),
    ("gpt2", "completion", {"targets": ["q", "v"]}, {"targets": ["all-linear"], "rslora": True}),
    ("llama", "completion", {"targets": ["all-linear"]}, {"targets": ["q"], "dropout": 0.5}),
]


@pytest.mark.parametrize(("model_type", "kind", "first", "second"), CASES)
def test_a_switched_adapter_is_the_freshly_loaded_one(
    tmp_path: Path, tiny: Tiny, model_type: str, kind: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    runs = [made(tmp_path / str(i), tiny(model_type), kind, method) for i, method in enumerate((first, second))]
    fresh = [logits(open_run(one).prepared.model) for one in runs]
    assert not torch.equal(*fresh)
    switch = Switch(*runs)
    bare, where = logits(switch.model), storage(switch.model)
    for index in (0, 1, 0, 1, 1):
        model = switch.use(runs[index])
        assert model is switch.model
        assert torch.equal(logits(model), fresh[index])
    assert torch.equal(logits(switch.use(None)), bare)
    assert storage(switch.model) == where, "the base was copied"


def test_while_switching_the_base_stays_where_it_is(tmp_path: Path, tiny: Tiny) -> None:
    runs = [made(tmp_path / name, tiny("llama"), "completion", {"targets": [name]}) for name in ("q", "up")]
    switch = Switch(runs[0])
    where = storage(switch.model)
    switch.use(runs[0])
    assert storage(switch.model) == where
    switch.add(runs[1])
    assert switch.used == str(runs[0])
    assert torch.equal(logits(switch.use(runs[1])), logits(open_run(runs[1]).prepared.model))
    assert storage(switch.model) == where


def test_heads_of_other_sizes_come_with_their_labels(tmp_path: Path, tiny: Tiny) -> None:
    classes = made(tmp_path / "c", tiny("bert"), "classification", {})
    scores = made(tmp_path / "r", tiny("bert"), "regression", {"targets": ["v"]})
    switch = Switch(classes, scores)
    shapes: list[Tensor] = [logits(switch.use(one)) for one in (classes, scores, classes)]
    assert [shape.shape[-1] for shape in shapes] == [2, 1, 2]
    assert torch.equal(shapes[1], logits(open_run(scores).prepared.model))
    assert torch.equal(shapes[0], shapes[2])
    assert list(switch.model.config.id2label.values()) == ["bad", "good"]
    assert switch.use(scores).config.num_labels == switch.model.num_labels == 1


def test_what_cannot_take_turns_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    bert = made(tmp_path / "bert", tiny("bert"), "classification", {})
    roberta = made(tmp_path / "roberta", tiny("roberta"), "classification", {})
    houlsby = made(
        tmp_path / "houlsby", tiny("bert"), "classification", {"name": "adapter", "rank": "absent", "alpha": "absent"}
    )
    with pytest.raises(CheckpointError, match=r"(?s)roberta/run: is of the base.*houlsby/run: was trained by adapter"):
        Switch(bert, roberta, houlsby)
    switch = Switch(bert)
    with pytest.raises(CheckpointError, match="is of the base"):
        switch.add(roberta)
    with pytest.raises(CheckpointError, match=r"nobody: is not here; there are: .*bert/run"):
        switch.use("nobody")
    text = made(tmp_path / "text", tiny("llama"), "completion", {})
    labels = made(tmp_path / "labels", tiny("llama"), "classification", {})
    with pytest.raises(CheckpointError, match="is for classification, and .* for generation"):
        Switch(text, labels)

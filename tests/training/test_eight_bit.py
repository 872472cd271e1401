"""AdamW with means in 8 bits: its states are saved, put back and planned as they are."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lorakit.errors import CheckpointError
from lorakit.schedule import Optimizer, Train
from lorakit.training.eight_bit import AdamW8bitOutline, is_8bit, is_table, state_shapes
from lorakit.training.optim import build_optimizer, outline_optimizer
from lorakit.training.state import TrainingState, _check_moments, optimizer_state, restore_optimizer

TRAIN = Train(steps=9, batch_size=1, lr=1e-2, optimizer=Optimizer(name="adamw8bit"))


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"large.A": (70, 100), "small.B": (8, 8), "vector": (5,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def steps(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_a_restored_optimiser_goes_on_to_the_bit() -> None:
    whole, optimizer = parameters(), None
    optimizer = build_optimizer(TRAIN, whole)
    assert is_8bit(optimizer)
    steps(whole, optimizer, 0, 3)
    moments, counters = optimizer_state(optimizer, whole)
    broken = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in whole.items()}
    moments, state = copy.deepcopy(moments), TrainingState(steps=copy.deepcopy(counters))
    steps(whole, optimizer, 3, 6)
    fresh = build_optimizer(TRAIN, broken)
    restore_optimizer(moments, state, fresh, broken)
    steps(broken, fresh, 3, 6)
    for name, parameter in whole.items():
        assert torch.equal(parameter, broken[name]), name
    assert not torch.equal(whole["large.A"], parameters()["large.A"])


def test_means_are_in_8_bits_from_4096_elements_on() -> None:
    named = parameters()
    optimizer = build_optimizer(TRAIN, named)
    steps(named, optimizer, 0, 1)
    moments, counters = optimizer_state(optimizer, named)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in moments.items()} == {
        "large.A/state1": (torch.uint8, (70, 100)),
        "large.A/state2": (torch.uint8, (70, 100)),
        "large.A/absmax1": (torch.float32, (28,)),
        "large.A/absmax2": (torch.float32, (28,)),
        "small.B/state1": (torch.float32, (8, 8)),
        "small.B/state2": (torch.float32, (8, 8)),
        "vector/state1": (torch.float32, (5,)),
        "vector/state2": (torch.float32, (5,)),
    }
    assert counters == {name: {"step": 1.0} for name in named}


def test_a_plan_s_optimiser_has_the_same_states() -> None:
    named = parameters()
    real, outline = build_optimizer(TRAIN, named), outline_optimizer(TRAIN, named)
    assert isinstance(outline, AdamW8bitOutline)
    steps(named, real, 0, 1)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    outline.step()
    for name, parameter in named.items():
        assert torch.equal(parameter, before[name])
        kept = {
            key: (value.shape, value.dtype)
            for key, value in real.state[parameter].items()
            if isinstance(value, torch.Tensor) and not is_table(key)
        }
        assert kept == {key: (value.shape, value.dtype) for key, value in outline.state[parameter].items()}


@pytest.mark.parametrize("change", [
    lambda found: found.pop("a/absmax1"),
    lambda found: found.update({"a/absmax1": torch.zeros(27)}),
    lambda found: found.update({"a/exp_avg": torch.zeros(70, 100)}),
    lambda found: found.pop("a/state2"),
])  # fmt: skip
def test_states_that_cannot_be(tmp_path: Any, change: Any) -> None:
    from safetensors.torch import save_file

    from lorakit.weights import read_header

    adapter, file = {"a": torch.zeros(70, 100)}, tmp_path / "optimizer.safetensors"
    found = {f"a/{key}": torch.zeros(shape) for key, shape in state_shapes((70, 100))[1].items()}
    state = TrainingState(steps={"a": {"step": 1.0}})
    save_file(found, file)
    _check_moments(file, read_header(file)[0], state, adapter)
    change(found)
    save_file(found, file)
    with pytest.raises(CheckpointError, match="its moments are not those"):
        _check_moments(file, read_header(file)[0], state, adapter)

"""AdamW with its running means in 8 bits (Dettmers et al. 2022, arXiv 2110.02861), by bitsandbytes.

A mean is cut into blocks of 256, each divided by its largest magnitude and rounded to one of 256 values. Of tensors
with fewer than 4,096 elements the means stay in float32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.nf4 import library

BLOCK = 256
"""Elements of a block."""
SMALLEST = 4096
"""Elements of the smallest tensor whose means are in 8 bits."""
_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""The values that the two means are rounded to, by the name that the optimiser has for them."""


def make_8bit(
    groups: Iterable[Mapping[str, Any]], lr: float, betas: Sequence[float], eps: float
) -> torch.optim.Optimizer:
    """The optimiser, on CUDA and on CPU.

    Args:
        groups: As of `torch.optim.AdamW`.
        lr: The learning rate.
        betas: Decay rates of the two means.
        eps: Added to the denominator.
    """
    kind: Any = library().optim.AdamW8bit
    made: torch.optim.Optimizer = kind(list(groups), lr=lr, betas=(betas[0], betas[1]), eps=eps, min_8bit_size=SMALLEST)
    return made


def is_table(key: str) -> bool:
    """Whether a part of a parameter's state is the same for all, and need not be saved."""
    return key in _TABLES


def restored(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, kept: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state as this optimiser wants it, from what was saved: counters are plain numbers, tables are back.

    Args:
        optimizer: From `make_8bit`.
        parameter: Whose state it is.
        kept: Tensors and counters.
    """
    assert is_8bit(optimizer)
    made = {key: value if isinstance(value, Tensor) and value.ndim else int(value) for key, value in kept.items()}
    if "absmax1" in made:
        tables: Any = optimizer.name2qmap  # type: ignore[attr-defined]
        made |= {key: tables[name].to(parameter.device) for key, name in _TABLES.items()}
    return made


def is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of these."""
    return hasattr(optimizer, "name2qmap")


def state_shapes(shape: Sequence[int]) -> list[dict[str, tuple[int, ...]]]:
    """The tensors that the state of a parameter may have, key → shape: of AdamW, and of this one.

    Args:
        shape: Of the parameter.
    """
    own, count = tuple(shape), torch.Size(shape).numel()
    small = {"state1": own, "state2": own}
    blocks = (-(-count // BLOCK),)
    eight = small if count < SMALLEST else {**small, "absmax1": blocks, "absmax2": blocks}
    return [{"exp_avg": own, "exp_avg_sq": own}, eight]


def first_state(parameter: Tensor, eight_bit: bool) -> dict[str, Tensor]:
    """The tensors of a parameter's state before its first step: of this optimiser, or of AdamW."""
    shapes = state_shapes(parameter.shape)[eight_bit]
    means = torch.uint8 if "absmax1" in shapes else torch.float32
    return {
        key: parameter.new_zeros(shape, dtype=torch.float32 if key.startswith("absmax") else means)
        for key, shape in shapes.items()
    }


class AdamW8bitOutline(torch.optim.Optimizer):
    """Has the states of the real one and changes nothing: for plans.

    Args:
        parameters: Without data.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(list(parameters), {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make the states."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = first_state(parameter, True)

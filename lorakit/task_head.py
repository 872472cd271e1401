"""The task's head on a base: where it begins."""

import re
from collections.abc import Collection

import torch
from torch import nn

from lorakit.arch import Architecture
from lorakit.runtime import derive
from lorakit.surgery import release


def prepare_head(model: nn.Module, row: Architecture, new: Collection[str], seed: int) -> None:
    """Release the task's head; initialise what the files lack, from the seed alone.

    Weights N(0, initializer_range²), biases zero, norms one: what transformers does for nearly all of these heads, but
    as a function of (seed, name), whatever was drawn before.

    Args:
        model: Frozen.
        row: Its architecture.
        new: Parameters that the base's files lack.
        seed: Of the run.
    """
    wanted = re.compile(rf"({'|'.join(map(re.escape, row.head))})(\.|$)")
    for name, parameter in model.named_parameters():
        if name in new or wanted.match(name):
            release(parameter)
        if name in new and not parameter.is_meta:
            _initialise(name, parameter, float(getattr(model.config, "initializer_range", 0.02)), seed)


def _initialise(name: str, parameter: nn.Parameter, std: float, seed: int) -> None:
    with torch.no_grad():
        if parameter.ndim > 1:
            generator = torch.Generator().manual_seed(derive(seed, "head", name))
            values = torch.empty(parameter.shape).normal_(0, std, generator=generator)
            parameter.copy_(values)
        else:
            parameter.fill_(1.0 if name.lower().endswith("norm.weight") else 0.0)

"""The optimiser and the learning rate."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lorakit.data.batches import step_rows, steps_per_epoch
from lorakit.schedule import Train
from lorakit.training.eight_bit import AdamW8bitOutline, make_8bit


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, lr_b_ratio: float | None = None
) -> list[dict[str, Any]]:
    """What is trained, by weight decay and rate.

    Matrices decay; biases and norms (one dimension) do not, as in transformers' Trainer. With LoRA+ (Hayou et al. 2024,
    arXiv 2402.12354) the B matrices, and with them biases and norms, as in the authors' code and PEFT's, learn faster.

    Args:
        parameters: By canonical name.
        weight_decay: Of the matrices.
        lr_b_ratio: LoRA+'s: the rate of B over that of A.

    Returns:
        AdamW's groups, none of them empty; `lr_ratio` is what the schedule's rate is multiplied with.
    """
    fast = 1.0 if lr_b_ratio is None else lr_b_ratio
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        matrix = parameter.ndim > 1
        ratio = fast if not matrix or is_b(name) else 1.0
        groups.setdefault((weight_decay if matrix else 0.0, ratio), []).append(parameter)
    order = sorted(groups, key=lambda key: (-key[0], key[1]))
    return [{"params": groups[key], "weight_decay": key[0], "lr_ratio": key[1]} for key in order]


def is_b(name: str) -> bool:
    """Whether a parameter is the B of a low-rank pair."""
    return ".update." in name and name.endswith(".B")


def build_optimizer(train: Train, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (decoupled decay) over what is trained, by canonical name."""
    settings = train.optimizer
    groups = parameter_groups(parameters, train.weight_decay, settings.lr_b_ratio)
    for group in groups:
        group["lr"] = train.lr * group["lr_ratio"]
    if settings.name == "adamw8bit":
        return make_8bit(groups, train.lr, settings.betas, settings.eps)
    # One kernel for all parameters: a quarter of the time on a CPU too, and no temporaries; but it knows no strides.
    fused = all(parameter.is_contiguous() for parameter in parameters.values())
    return torch.optim.AdamW(
        groups, lr=train.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=fused
    )


def outline_optimizer(train: Train, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of parameters without data, for plans: it has the states that the real one has."""
    if train.optimizer.name == "adamw8bit":
        return AdamW8bitOutline(parameters.values())
    return build_optimizer(train, parameters)


def total_steps(train: Train, rows: int) -> int:
    """Optimiser steps of the run."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None
    return train.epochs * steps_per_epoch(rows, train.batch_size)


def warmup_steps(train: Train, lengths: NDArray[np.int64], total: int) -> int:
    """Steps over which the rate rises.

    A number of tokens (the paper's GPT-3 runs: 250,000) is counted over the very rows that the first steps will see,
    prompts included and padding not.
    """
    warmup = train.warmup
    if warmup is None:
        return 0
    if warmup.steps is not None:
        return warmup.steps
    if warmup.ratio is not None:
        return math.ceil(warmup.ratio * total)
    assert warmup.tokens is not None
    seen = 0
    for step in step_rows(train.seed, len(lengths), train.batch_size, total):
        if seen >= warmup.tokens:
            return step.number - 1
        seen += int(lengths[step.rows].sum())
    return total


def rate(train: Train, step: int, warmup: int, total: int) -> float:
    """The learning rate of a step (from 0): rising to `lr` over the warmup, then linear or cosine to 0, or constant."""
    if step < warmup:
        return train.lr * step / warmup
    if train.schedule == "constant":
        return train.lr
    progress = (step - warmup) / max(1, total - warmup)
    if train.schedule == "linear":
        return train.lr * max(0.0, 1.0 - progress)
    return train.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

"""The optimiser and the learning rate."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lorakit.data.batches import step_rows, steps_per_epoch
from lorakit.schedule import Train


def parameter_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms (one dimension) do not, as in transformers' Trainer."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(train: Train, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (decoupled decay) over what is trained."""
    settings = train.optimizer
    groups = parameter_groups(parameters, train.weight_decay)
    on_gpu = parameters[0].is_cuda
    return torch.optim.AdamW(
        groups, lr=train.lr, betas=(settings.betas[0], settings.betas[1]), eps=settings.eps, fused=on_gpu
    )


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

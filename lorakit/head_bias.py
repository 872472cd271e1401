"""Where the bias of a regression head begins (`train.head_bias`)."""

import statistics
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import nn

from lorakit.arch import Architecture
from lorakit.data.rows import TextRow
from lorakit.errors import RecipeError


def regression_bias(model: nn.Module, row: Architecture, in_files: Container[str] = ()) -> nn.Parameter:
    """The bias of a regression head's last layer.

    Args:
        model: With its head; may be on the meta device.
        row: Its architecture.
        in_files: Parameters that the base's files have.

    Raises:
        RecipeError: The head has none, as decoders' heads; or the base comes with a trained one.
    """
    heads = tuple(f"{module}." for module in row.head)
    for name, parameter in model.named_parameters():
        if name.startswith(heads) and name.endswith(".bias") and parameter.shape == (1,):
            if name in in_files:
                raise RecipeError("train.head_bias: the base comes with a trained head, which stays; set it to zero")
            return parameter
    raise RecipeError(f"train.head_bias: the head of a {row.model_type} model has no bias; set it to zero")


def start_at_mean(bias: nn.Parameter, rows: Sequence[Any]) -> None:
    """Set a regression head's bias to the rows' mean score."""
    scores = [row.label for row in rows if isinstance(row, TextRow) and row.label is not None]
    assert len(scores) == len(rows), "training rows of a regression have scores"
    with torch.no_grad():
        bias.fill_(statistics.fmean(scores))

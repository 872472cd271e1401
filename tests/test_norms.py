"""RMS norms against transformers' own, and which are left alone."""

import copy
from typing import Any

import pytest
import torch
from bare_models import bare_model
from torch import Tensor, nn

from lorakit.arch import ARCHITECTURES
from lorakit.norms import _light, lighten

RMS = ["llama", "smollm3", "mistral", "qwen2", "qwen3", "phi3", "qwen3_moe", "mixtral"]


def rms_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def lightened(module: Any) -> bool:
    return type(module) is _light(type(module).__bases__[0])


@pytest.mark.parametrize("model_type", RMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_same_bits_and_gradients(model_type: str, dtype: torch.dtype, trained: bool) -> None:
    """Forward bit for bit; gradients to the rounding of the dtype, that of the weight too where it is trained."""
    plain = rms_norms(bare_model(model_type, "generation"))[0].to(dtype)
    nn.init.uniform_(plain.weight, 0.5, 1.5)
    plain.weight.requires_grad_(trained)
    own = copy.deepcopy(plain)
    lighten(own)
    assert lightened(own)
    numbers = torch.randn(2, 5, len(plain.weight), generator=torch.Generator().manual_seed(1)).to(dtype)
    found: list[list[Tensor | None]] = []
    for norm in (plain, own):
        x = numbers.clone().requires_grad_()
        out = norm(x)
        (out * torch.arange(len(norm.weight))).sum().backward()
        found.append([out.detach(), x.grad, norm.weight.grad])
    (theirs, *their_grads), (mine, *my_grads) = found
    assert theirs is not None and mine is not None and torch.equal(mine, theirs)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    for got, wanted in zip(my_grads, their_grads, strict=True):
        if wanted is None:
            assert got is None
        else:
            assert got is not None and (got - wanted).abs().max() <= bound * wanted.abs().max()


def test_a_copy_computes_with_its_own_weight() -> None:
    norm = rms_norms(bare_model("llama", "generation"))[0]
    lighten(norm)
    other = copy.deepcopy(norm)
    nn.init.zeros_(other.weight)
    x = torch.randn(2, len(norm.weight))
    assert not other(x).any() and norm(x).any()


@pytest.mark.parametrize("model_type", ["gemma", "gemma3_text"])
def test_norms_of_another_form_are_left_alone(model_type: str) -> None:
    """Gemma's adds one to its weight."""
    model = bare_model(model_type, "generation" if ARCHITECTURES[model_type].decoder else "classification")
    lighten(model)
    assert not any(lightened(norm) for norm in rms_norms(model))


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x / x.abs().mean(-1, keepdim=True)

    norm = OddRMSNorm()
    lighten(norm)
    assert not lightened(norm)

"""Attention of packed rows on a GPU: PyTorch's kernel for rows of different lengths, once it has proved itself.

Nothing is filled up, and no mask exists. No GPU was at hand when this was written, so nothing is taken on trust: before
a shape is first computed the kernel's output and gradients are compared, on that GPU, with the attention of each row by
itself. Where they differ, or the kernel is missing, rows are filled up as without it.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_DEVICES, _DTYPES, _WIDEST = ("cuda",), (torch.bfloat16, torch.float16), 256
"""Where FlashAttention runs, in what, and the most dimensions of a head."""
_LENGTHS = (5, 1, 17, 9)
"""Of the rows that a kernel is tried on."""
_NEAR = 0.03
"""Largest difference that rounding explains, beside the largest number: 16-bit products differ by 0.01."""


@dataclass(frozen=True)
class Form:
    """What decides which kernel is used.

    Args:
        device: Of the tensors.
        dtype: Theirs.
        heads: Of the queries.
        shared: Of keys and values; each serves `heads / shared` queries.
        dim: Of a head.
        scaling: Of the products.
        causal: Whether no token sees a later one.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    shared: int
    dim: int
    scaling: float | None
    causal: bool


def form_of(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, causal: bool) -> Form | None:
    """The form of an attention that the kernel may know; None of one that it does not.

    Args:
        query: (1, heads, tokens, dim).
        key: (1, key heads, tokens, dim).
        value: As key.
        scaling: Of the products; None for dim ** -0.5.
        causal: Whether no token sees a later one.
    """
    dim, dtype = query.shape[-1], query.dtype
    known = query.device.type in _DEVICES and dtype in _DTYPES and key.dtype == value.dtype == dtype
    if not known or value.shape[-1] != dim or dim % 8 or dim > _WIDEST:
        return None
    return Form(query.device, dtype, query.shape[1], key.shape[1], dim, scaling, causal)


def attend_rows(form: Form, given: Sequence[Tensor], bounds: Tensor, longest: int) -> Tensor:
    """Scaled dot-product attention within rows that stand behind one another.

    Args:
        form: Of the tensors; one that `proved`.
        given: Query, key and value, each (1, heads, tokens, dim).
        bounds: (rows + 1,) int32: where rows begin, and where the last one ends: behind the last token.
        longest: Tokens of the longest row.

    Returns:
        (1, tokens, heads, dim).
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (one[0].transpose(0, 1) for one in given)
    window = (-1, 0) if form.causal else (-1, -1)
    sizes = (bounds, bounds, longest, longest)
    grouped = form.heads != form.shared
    found = varlen_attn(query, key, value, *sizes, scale=form.scaling, window_size=window, enable_gqa=grouped)
    assert isinstance(found, Tensor)
    return found[None]


@cache
def proved(form: Form) -> bool:
    """Whether the kernel is there for a form and computes what it must, with its gradients."""
    # In a thread of its own: whoever asks may be within autocast, without gradients, or in a part of a model that is
    # checkpointed, whose hooks would take the tensors that are kept here for theirs.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_prove, form).result()


def _prove(form: Form) -> bool:
    make = torch.Generator().manual_seed(0)
    heads, tokens = (form.heads, form.shared, form.shared), sum(_LENGTHS)
    sizes = [*((1, count, tokens, form.dim) for count in heads), (1, tokens, form.heads, form.dim)]
    given = [torch.randn(size, generator=make).to(form.device, form.dtype) for size in sizes]
    bounds = torch.tensor(np.cumsum([0, *_LENGTHS], dtype=np.int32), device=form.device)
    try:
        found = _passes(lambda *parts: attend_rows(form, parts, bounds, max(_LENGTHS)), given)
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel
    except (ImportError, RuntimeError, TypeError, ValueError):
        return False  # no such kernel in this version, or on this GPU
    expected = _passes(partial(_row_by_row, form), [one.float() for one in given])
    pairs = zip(found, expected, strict=True)
    far = max(float((one.float() - other).abs().max() / other.abs().max()) for one, other in pairs)
    if not far <= _NEAR:  # no number is far too
        what = f"PyTorch's attention of packed rows is off by {far:.2g} ({form})"
        warnings.warn(f"{what}: not used; rows are filled up", stacklevel=2)
    return far <= _NEAR


def _passes(attention: Callable[..., Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """What attention finds, and the gradients of query, key and value for one from above, the last of `given`."""
    parts, above = [one.detach().requires_grad_() for one in given[:-1]], given[-1]
    found = attention(*parts)
    return [found.detach(), *torch.autograd.grad(found, parts, above)]


def _row_by_row(form: Form, *parts: Tensor) -> Tensor:
    grouped, found = form.heads != form.shared, []
    for query, key, value in zip(*(torch.split(one, list(_LENGTHS), dim=2) for one in parts), strict=True):
        options = {"is_causal": form.causal, "scale": form.scaling, "enable_gqa": grouped}
        found.append(F.scaled_dot_product_attention(query, key, value, **options))  # type: ignore[arg-type]
    return torch.cat(found, dim=2).transpose(1, 2)

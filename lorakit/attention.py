"""Which kernel computes attention: by device, dtype and length."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.dropout import bits_tell, dropout
from lorakit.kernels import on_cpu, stands_for_gpu
from lorakit.packing import ATTENTION, Packing, packing_of, padding_shows
from lorakit.row_attention import Rows, attend_each_length
from lorakit.varlen import Form, attend_rows, form_of, proved

_SHORT = 1024
"""Longest row for which products of whole matrices are faster: 4.5 times at 64 tokens, 3.6 at 128, 1.7 at 1024; at
2048 no longer (forward and backward in bfloat16 on one core with AVX512-BF16)."""


def install(model: Any) -> None:
    """Let a model that would use PyTorch's fused attention (SDPA) everywhere leave it where that is slow.

    On a CPU in 16 bits its backward pass takes a third of a step of a small model. Models with an attention of their
    own (DeBERTa), or that need another implementation (Gemma 2's soft cap), are left as they are.

    Args:
        model: Loaded, or a skeleton.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, mask)
    model.set_attn_implementation(ATTENTION)


def mask(*, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """What tokens see, as transformers asks for it: None where that is all, or all that are not later.

    transformers finds that out by reading the mask, for which a GPU must be waited for, and hides padding that no real
    token could see; where the batch's tokens were counted (`packing`), neither is needed.

    Args:
        attention_mask: (batch, keys), True where there is no padding.
        options: Further ones of transformers' own function.

    Returns:
        (batch, 1, seq, keys), True where a token sees another.
    """
    from transformers.masking_utils import sdpa_mask

    shows = padding_shows(options.get("config"))
    if shows is False:
        attention_mask = None
    elif shows:
        options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    found: Tensor | None = sdpa_mask(attention_mask=attention_mask, **options)
    return found


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as transformers calls it.

    Args:
        module: The attention module; tells whether it is causal.
        query: (batch, heads, seq, dim).
        key: (batch, key heads, keys, dim); `heads` is a multiple of them.
        value: As key.
        attention_mask: (batch, 1, seq, keys), True where a query sees a key; None: all do, or all that are not later.
        options: dropout, scaling, is_causal, and others that only SDPA knows.

    Returns:
        ((batch, seq, heads, dim), None for the probabilities).
    """
    query, key, value = _as_autocast(query, key, value)
    packing = packing_of(module)
    width = key.shape[2] if packing is None else packing.width
    products = _products_are_faster(query, width, attention_mask, options)
    if packing is None:
        return _attend(module, (query, key, value), attention_mask, options, products), None
    form = _form_of_rows(module, (query, key, value), attention_mask, options)
    if form is not None and proved(form):
        return attend_rows(form, (query, key, value), *packing.bounds), None
    whole = attention_mask is None or attention_mask.shape[1:] == (1, width, width)
    if on_cpu(query) and whole and not products:
        return _without_padding(packing, module, (query, key, value), attention_mask, options), None
    parted = [packing.unpack(one.transpose(1, 2)).transpose(1, 2) for one in (query, key, value)]
    return packing.pack(_attend(module, parted, attention_mask, options, products)), None


def _as_autocast(*given: Tensor) -> list[Tensor]:
    """In autocast's dtype, as SDPA takes them: rotary angles in float32 leave queries and keys in it, not values."""
    kind = given[0].device.type
    if not torch.is_autocast_enabled(kind) or given[0].dtype == torch.float64:
        return list(given)
    return [one.to(torch.get_autocast_dtype(kind)) for one in given]


def _attend(
    module: Any, given: Sequence[Tensor], mask: Tensor | None, options: dict[str, Any], products: bool = False
) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = given
    if products:
        return _products(module, query, key, value, mask, options)
    if stands_for_gpu():  # whose fused kernels know dropout; the CPU's does not, and another keeps more
        options = options | {"dropout": 0.0}
    return sdpa_attention_forward(module, query, key, value, mask, **options)[0]


def _without_padding(
    packing: Packing, module: Any, given: Sequence[Tensor], mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """A kernel for the rows of each length: on a CPU that costs less than to fill all up to the longest."""
    causal, query = _is_causal(module, options), given[0]
    masks = packing.run_masks(mask, causal)
    dropout_p = options.get("dropout") or 0.0
    alike = all(one.shape == query.shape and one.stride(-1) == 1 for one in given)
    narrow = query.dtype in (torch.bfloat16, torch.float16)  # of which probabilities are kept in float32, by SDPA
    drops = not dropout_p or (bits_tell(dropout_p) and not narrow)
    if alike and drops and all(one is None for one in masks) and not _is_special(options):
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        how = Rows(packing.runs, causal, scaling, dropout_p)
        return attend_each_length(query, given[1], given[2], how)
    sizes = [rows * length for rows, length in packing.runs]
    parts = zip(*(torch.split(one, [*sizes, packing.zeros], dim=2) for one in given), strict=True)
    found = []
    for (rows, length), seen in zip(packing.runs, masks, strict=True):
        tokens = [one.squeeze(0).unflatten(1, (rows, length)).transpose(0, 1) for one in next(parts)]
        found.append(_attend(module, tokens, seen, options).flatten(0, 1))
    (rest, *_) = next(parts)
    return torch.cat([*found, torch.zeros_like(rest[0].transpose(0, 1))])[None]


def _form_of_rows(module: Any, given: Sequence[Tensor], mask: Tensor | None, options: dict[str, Any]) -> Form | None:
    """What a GPU's kernel for rows of different lengths would compute; None where more is asked for than it knows."""
    if mask is not None or options.get("dropout") or _is_special(options):
        return None
    query, key, value = given
    return form_of(query, key, value, options.get("scaling"), _is_causal(module, options))


def _is_special(options: dict[str, Any]) -> bool:
    """Whether something is asked for that only SDPA knows."""
    return any(options.get(name) is not None for name in ("position_bias", "cache", "softcap"))


def _products_are_faster(query: Tensor, width: int, mask: Tensor | None, options: dict[str, Any]) -> bool:
    known = mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1)
    in_16_bits = on_cpu(query) and query.dtype in (torch.bfloat16, torch.float16)
    return in_16_bits and width <= _SHORT and known and not _is_special(options)


def _products(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Tensor:
    """softmax(q kᵀ) v with the probabilities kept; query heads that share a key head are rows of one product."""
    batch, heads, seq, dim = query.shape
    shared = key.shape[1]
    scaling = options.get("scaling") or dim**-0.5
    rows = (query * scaling).reshape(batch, shared, heads // shared * seq, dim)
    scores = (rows @ key.transpose(-1, -2)).view(batch, shared, heads // shared, seq, -1)
    chances: Tensor = _Softmax.apply(scores, _hidden(module, scores, mask, options))  # type: ignore[no-untyped-call]
    seen = dropout(chances, options.get("dropout") or 0.0)
    found = seen.view(batch, shared, heads // shared * seq, -1) @ value
    return found.view(batch, heads, seq, -1).transpose(1, 2).contiguous()


class _Softmax(torch.autograd.Function):
    """Softmax over the keys that a query may see, computed in float32.

    PyTorch's own in bfloat16 takes three times as long on a CPU, and the mask would get a backward pass of its own,
    though what is hidden has a probability of zero and so no gradient: of an e2e step 4 %.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, hidden: Tensor | None) -> Tensor:
        """Scores (…, keys) and what is hidden (to be broadcast over them) → probabilities in the scores' dtype."""
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
        if hidden is not None:
            wide.masked_fill_(hidden, torch.finfo(wide.dtype).min)
        chances = torch.softmax(wide, dim=-1).to(scores.dtype)
        ctx.save_for_backward(chances)
        return chances

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        """See `torch.softmax`."""
        (chances,) = ctx.saved_tensors
        return torch._softmax_backward_data(above, chances, -1, chances.dtype), None


def _hidden(module: Any, scores: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor | None:
    """What no query may see, to be broadcast over (batch, key heads, heads of each, seq, keys)."""
    if mask is not None:
        return ~mask[:, :, None]
    if scores.shape[-2] == 1 or not _is_causal(module, options):
        return None
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)


def _is_causal(module: Any, options: dict[str, Any]) -> bool:
    """Whether a query without a mask sees no later key."""
    causal = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)

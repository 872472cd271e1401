"""A kernel for the rows of each length against PyTorch's attention, row by row."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorakit import row_attention
from lorakit.row_attention import Rows, attend_each_length

RUNS = [(2, 5), (1, 3), (3, 1)]
TOKENS, ZEROS = 16, 2
P = 0.25


def given(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value as models make them: a view of (1, tokens, heads, dim)."""
    make = torch.Generator().manual_seed(0)
    made = [torch.randn(1, TOKENS + ZEROS, 4, 8, generator=make, dtype=dtype) for _ in range(3)]
    return [one.transpose(1, 2).requires_grad_() for one in made]


def row_by_row(parts: list[Tensor], causal: bool, masks: list[Tensor] | None) -> Tensor:
    """(1, tokens, heads, dim), by plain formulas."""
    found, first = [], 0
    for index, (rows, length) in enumerate(RUNS):
        for row in range(rows):
            query, key, value = (one[0, :, first : first + length] for one in parts)
            scores = query @ key.transpose(1, 2) * 0.3
            if causal:
                scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
            chances = scores.softmax(-1)
            if masks is not None:
                chances = chances * masks[index][row] / (1 - P)
            found.append((chances @ value).transpose(0, 1))
            first += length
    found.append(torch.zeros(ZEROS, 4, 8, dtype=parts[0].dtype))
    return torch.cat(found)[None]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_rows_see_themselves(monkeypatch: pytest.MonkeyPatch, causal: bool, dropped: bool) -> None:
    make = torch.Generator().manual_seed(1)
    masks = [torch.rand(rows, 4, length, length, generator=make) > P for rows, length in RUNS]
    left = iter(masks)
    monkeypatch.setattr(row_attention, "kept", lambda shape, p: (next(left), 1 / (1 - p)))
    parts, above = given(), torch.randn(1, TOKENS + ZEROS, 4, 8, dtype=torch.float64)
    results = []
    mine = attend_each_length(*parts, Rows(RUNS, causal, 0.3, P if dropped else 0.0))
    for found in (mine, row_by_row(parts, causal, masks if dropped else None)):
        results.append([found, *torch.autograd.grad(found, parts, above)])
    assert mine.shape == (1, TOKENS + ZEROS, 4, 8)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_dropout_falls_on_the_probabilities_and_keeps_their_mean() -> None:
    query, key, value = (torch.randn(1, 2, 400, 8) for _ in range(3))
    rows = Rows([(1, 400)], causal=False, scaling=0.3)
    torch.manual_seed(0)
    noisy = attend_each_length(query, key, torch.ones_like(value), Rows([(1, 400)], False, 0.3, 0.5))
    assert float(noisy.std()) > 0.01
    assert float(noisy.mean()) == pytest.approx(1, abs=0.02)
    plain = attend_each_length(query, key, torch.ones_like(value), rows)
    torch.testing.assert_close(plain, torch.ones_like(plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_layout_will_do(dtype: torch.dtype) -> None:
    """Tensors of their own, and parts of a larger one."""
    parts = given(dtype)
    wide = torch.cat([one.detach() for one in parts], dim=3)
    rows = Rows(RUNS, True, 0.3)
    expected = attend_each_length(*parts, rows)
    for other in ([one.contiguous() for one in parts], list(wide.split(8, dim=3))):
        torch.testing.assert_close(attend_each_length(*other, rows), expected)


def test_sdpa_finds_the_same() -> None:
    parts = given(torch.float32)
    found = attend_each_length(*parts, Rows([(3, 6)], True, 0.3))
    rows = [one[0].unflatten(1, (3, 6)).transpose(0, 1) for one in parts]
    expected = F.scaled_dot_product_attention(*rows, is_causal=True, scale=0.3).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found[0], expected)

import copy

import pytest
import torch
from bare_models import bare_model
from torch import nn

from lorakit.dropout import FastDropout, dropout, kept, quicken


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.0001])
def test_the_share_that_is_dropped(p: float) -> None:
    """Of a million numbers, within five standard deviations; and of each of the four that a draw of 64 bits decides."""
    torch.manual_seed(0)
    mask, scale = kept((1000, 1000), p)
    for part in (mask.flatten(), *mask.flatten().view(-1, 4).T):
        spread = (p * (1 - p) / len(part)) ** 0.5
        assert float((~part).double().mean()) == pytest.approx(p, abs=5 * spread + 2**-17)
    assert scale == pytest.approx(1 / (1 - p), abs=2**-16 / (1 - p) ** 2)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(1)
    mask = kept((1_000_000,), 0.5)[0].double() - 0.5
    for distance in (1, 2, 3, 4, 7):
        assert abs(float((mask[distance:] * mask[:-distance]).mean())) < 5 * 0.25 / 1000


def test_the_mean_stays() -> None:
    torch.manual_seed(2)
    found = dropout(torch.ones(1000, 1001), 0.3)
    assert float(found.mean()) == pytest.approx(1, abs=0.005)
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=1e-4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_gradient_goes_where_the_numbers_came_from(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = torch.ones(3, 5, 7, dtype=dtype, requires_grad=True)
    found = dropout(x, 0.4)
    found.sum().backward()
    assert x.grad is not None
    assert (found.dtype, found.shape) == (dtype, x.shape)
    assert torch.equal(x.grad, found.detach())


def test_what_is_dropped_is_zero_whatever_it_was() -> None:
    torch.manual_seed(4)
    assert set(dropout(torch.full((1000,), torch.inf), 0.5).unique().tolist()) == {0.0, torch.inf}


@pytest.mark.parametrize("p", [0.0, 1e-6, 1.0])
def test_shares_that_bits_cannot_tell_are_left_to_torch(p: float) -> None:
    x = torch.ones(100)
    torch.manual_seed(5)
    expected = torch.nn.functional.dropout(x, p)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, p), expected)


def test_the_seed_decides() -> None:
    masks = []
    for seed in (6, 6, 7):
        torch.manual_seed(seed)
        masks.append(kept((100,), 0.5)[0])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_nothing_to_drop() -> None:
    assert dropout(torch.ones(0, 4), 0.5).shape == (0, 4)


def test_models_get_it_in_training_alone() -> None:
    plain = bare_model("bert", "classification")
    own = copy.deepcopy(plain)
    quicken(own)
    kinds = {type(one) for one in own.modules() if isinstance(one, nn.Dropout)}
    assert kinds == {FastDropout}
    ids = {"input_ids": torch.arange(4, 12)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    own.eval()
    plain.eval()
    assert torch.equal(own(**ids).logits, plain(**ids).logits)
    own.train()
    assert not torch.equal(own(**ids).logits, own(**ids).logits)


def test_what_is_not_quite_a_dropout_is_left_alone() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(Own(0.1), nn.Dropout(0.1, inplace=True), nn.Dropout2d(0.1))
    quicken(model)
    assert [type(one) for one in model] == [Own, nn.Dropout, nn.Dropout2d]

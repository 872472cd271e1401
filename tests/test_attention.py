"""The attention of our own against PyTorch's, on every architecture that takes one, and where each is used."""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_models import bare_model
from torch import Tensor

from lorakit import attention
from lorakit.arch import ARCHITECTURES
from lorakit.attention import attend, install
from lorakit.fast import make_fast
from lorakit.kernels import as_on_gpu
from lorakit.packing import padding_shows

OWN = {"deberta-v2", "gemma2"}
"""An attention of their own; a soft cap, which SDPA has not."""


EXPERTS = {"mixtral", "qwen3_moe"}


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """The ways of a GPU."""
    with as_on_gpu():
        yield


def padded(decoder: bool) -> dict[str, Tensor]:
    """Rows of which all but the first are padded on the right."""
    ids = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    return {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask, **({"use_cache": False} if decoder else {})}


def _catch(caught: list[Tensor], _module: object, _given: object, out: Tensor) -> None:
    caught.append(out.requires_grad_())


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - OWN))
@pytest.mark.parametrize("whole", [False, True])
def test_models_find_the_same(monkeypatch: pytest.MonkeyPatch, model_type: str, whole: bool) -> None:
    """Logits and the gradient of what goes in; in float64, but for experts, whose kernels do not know it."""
    decoder, wide = ARCHITECTURES[model_type].decoder, model_type not in EXPERTS
    plain = bare_model(model_type, "generation" if decoder else "classification")
    plain = plain.double() if wide else plain
    own = copy.deepcopy(plain)
    install(own)
    calls: list[bool] = []

    def always(*_: object) -> bool:
        calls.append(True)
        return True

    monkeypatch.setattr(attention, "_products_are_faster", always)
    inputs = padded(decoder)
    if whole:
        inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    results = []
    for model in (plain, own):
        caught: list[Tensor] = []
        model.get_input_embeddings().register_forward_hook(
            lambda _m, _a, out, to=caught: to.append(out.requires_grad_())
        )
        logits = model(**inputs).logits
        kept = logits if whole or logits.ndim == 2 else logits[inputs["attention_mask"] == 1]
        kept.square().sum().backward()
        results.append((kept.detach(), caught[0].grad))
    assert calls
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert mine is not None
        torch.testing.assert_close(mine, theirs, rtol=1e-9 if wide else 1e-3, atol=1e-10 if wide else 1e-4)


@pytest.mark.parametrize("model_type", sorted(OWN & set(ARCHITECTURES)))
def test_models_with_another_attention_keep_it(model_type: str) -> None:
    model = bare_model(model_type, "generation" if ARCHITECTURES[model_type].decoder else "classification")
    before = model.config._attn_implementation
    install(model)
    assert model.config._attn_implementation == before


def tensors(dtype: torch.dtype, keys: int = 6, seq: int = 6) -> list[Any]:
    make = torch.Generator().manual_seed(2)
    sizes = ((2, 4, seq, 8), (2, 2, keys, 8), (2, 2, keys, 8))
    return [torch.randn(size, generator=make).to(dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize(
    ("dtype", "keys", "products"),
    [
        (torch.bfloat16, 6, True),
        (torch.float16, 6, True),
        (torch.float32, 6, False),
        (torch.bfloat16, attention._SHORT + 1, False),
    ],
)
def test_products_are_for_short_rows_in_16_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, keys: int, products: bool
) -> None:
    called = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: called.append(True) or real(*a, **k))
    attend(SimpleNamespace(is_causal=False, num_key_value_groups=2), *tensors(dtype, keys), None)
    assert bool(called) is not products


def test_what_only_sdpa_knows_goes_there() -> None:
    query, key, value = tensors(torch.bfloat16)
    module = SimpleNamespace(is_causal=False, num_key_value_groups=2)
    bias = torch.zeros(1, 4, 6, 6, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="softcap"):
        attend(module, query, key, value, None, softcap=3.0)
    shifted, _ = attend(module, query, key, value, None, position_bias=bias + torch.arange(6, dtype=torch.bfloat16))
    assert not torch.allclose(shifted, attend(module, query, key, value, None)[0])


def test_a_row_that_sees_nothing_is_finite() -> None:
    """Padding on the left: the first queries may see no key."""
    query, key, value = tensors(torch.bfloat16)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[0, :, 0] = False
    found, _ = attend(SimpleNamespace(num_key_value_groups=2), query, key, value, mask)
    found.float().sum().backward()
    assert found.isfinite().all()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_dropout_falls_on_the_probabilities() -> None:
    module = SimpleNamespace(is_causal=False, num_key_value_groups=2)
    query, key, value = tensors(torch.bfloat16, keys=512)
    ones = torch.ones_like(value)
    torch.manual_seed(0)
    found = attend(module, query, key, ones, None, dropout=0.5)[0].detach()
    assert found.float().std() > 0.01  # else every probability would still be there, and each sum one
    assert found.float().mean() == pytest.approx(1, abs=0.05)
    torch.manual_seed(0)
    assert torch.equal(attend(module, query, key, ones, None, dropout=0.5)[0], found)


@pytest.mark.parametrize(
    ("model_type", "behind", "wants"), [("llama", True, False), ("llama", False, True), ("bert", True, True)]
)
@pytest.mark.usefixtures("on_gpu")  # on a CPU rows have a kernel each, and no masks
def test_masks_are_made_where_real_tokens_would_see_padding(
    monkeypatch: pytest.MonkeyPatch, model_type: str, behind: bool, wants: bool
) -> None:
    decoder = ARCHITECTURES[model_type].decoder
    own = bare_model(model_type, "generation" if decoder else "classification")
    make_fast(own, ARCHITECTURES[model_type], packed=True)
    made: list[bool] = []
    real = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *given: made.append(given[2] is not None) or real(*given))
    inputs = padded(decoder)
    if not behind:
        inputs = {name: one.flip(1) if isinstance(one, Tensor) else one for name, one in inputs.items()}
    own(**inputs)
    assert set(made) == {wants}
    made.clear()
    inputs["attention_mask"].fill_(1)
    own(**inputs)
    assert set(made) == {False}


@pytest.mark.usefixtures("on_gpu")
def test_a_decoder_that_sees_later_tokens_keeps_its_masks() -> None:
    """`model.overrides: {is_causal: false}`: then padding behind a token is seen."""
    plain = bare_model("llama", "generation")
    plain.config.is_causal = False
    own = copy.deepcopy(plain)
    make_fast(own, ARCHITECTURES["llama"], packed=True)
    inputs = padded(decoder=True)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(own(**inputs).logits[real], plain(**inputs).logits[real])


def test_what_is_known_of_a_batch_ends_with_its_forward_pass() -> None:
    own = bare_model("llama", "generation")
    make_fast(own, ARCHITECTURES["llama"], packed=True)
    own(**padded(decoder=True))
    assert padding_shows(own.config) is None
    with pytest.raises(IndexError):
        own(**padded(decoder=True) | {"input_ids": torch.full((3, 9), 10**6)})
    assert padding_shows(own.config) is None


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("model_type", ["gemma", "gemma3_text"])
def test_gemma_that_sees_later_tokens_keeps_its_masks(model_type: str) -> None:
    plain = bare_model(model_type, "generation", use_bidirectional_attention=True)
    own = copy.deepcopy(plain)
    make_fast(own, ARCHITECTURES[model_type], packed=True)
    inputs = padded(decoder=True)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(own(**inputs).logits[real], plain(**inputs).logits[real])


def test_a_model_within_another_s_forward_pass() -> None:
    """What is known of the outer one's batch says nothing of the inner one's."""
    outer, inner = bare_model("llama", "generation"), bare_model("bert", "classification")
    make_fast(outer, ARCHITECTURES["llama"], packed=True)
    install(inner)
    expected, found = inner(**padded(False)).logits, []
    outer.model.layers[0].register_forward_pre_hook(lambda *_: found.append(inner(**padded(False)).logits))
    outer(**padded(True))
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - OWN))
@pytest.mark.parametrize("gpu", [False, True])
def test_autocast_on_a_base_in_float32(model_type: str, gpu: bool) -> None:
    """Rotary angles in float32 leave queries and keys in it, and values not; probabilities are dropped in training."""
    decoder = ARCHITECTURES[model_type].decoder
    plain = bare_model(model_type, "generation" if decoder else "classification")
    own = copy.deepcopy(plain)
    make_fast(own, ARCHITECTURES[model_type], packed=True)
    inputs, found = padded(decoder), []
    with as_on_gpu() if gpu else nullcontext():
        for model in (plain, own):
            caught: list[Tensor] = []
            model.get_input_embeddings().register_forward_hook(partial(_catch, caught))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(**inputs).logits
            (logits if logits.ndim == 2 else logits[inputs["attention_mask"] == 1]).float().square().mean().backward()
            assert caught[0].grad is not None
            found.append(caught[0].grad)
        own.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            own(**inputs).logits.float().mean().backward()
    near = torch.cosine_similarity(found[0].flatten(), found[1].flatten(), dim=0)
    assert float(near) > 0.995

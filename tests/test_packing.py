"""Packed blocks against padded ones, on every architecture."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from bare_models import bare_model
from test_attention import EXPERTS, OWN, padded
from torch import Tensor

from lorakit.arch import ARCHITECTURES
from lorakit.fast import make_fast
from lorakit.memory import checkpoint_gradients
from lorakit.methods.lora import LoRA
from lorakit.methods.prefix_kv import PrefixKV
from lorakit.model import Head, attach
from lorakit.packing import Packing, packing_in
from lorakit.targets import blocks

TYPES = sorted(set(ARCHITECTURES) - OWN)


def models(model_type: str) -> tuple[Any, Any]:
    """The same model, padded and packed; in float64, but for experts, whose kernels do not know it."""
    row = ARCHITECTURES[model_type]
    plain = bare_model(model_type, "generation" if row.decoder else "classification")
    plain = plain if model_type in EXPERTS else plain.double()
    own = copy.deepcopy(plain)
    original = {type(module): type(module) for module in own.modules()}
    make_fast(own, row, packed=True)
    for module in own.modules():
        if type(module).__name__.endswith("RMSNorm"):  # in float32 whatever they get; test_norms.py has them
            module.__class__ = original.get(type(module).__bases__[0], type(module))
    return plain, own


def found(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The logits of real tokens, and the gradient of the embeddings' output."""
    caught: list[Tensor] = []

    def catch(_module: object, _given: object, out: Tensor) -> None:
        caught.append(out.requires_grad_())

    handle = model.get_input_embeddings().register_forward_hook(catch)
    logits = model(**inputs).logits
    kept = logits if logits.ndim == 2 else logits[inputs["attention_mask"] == 1]
    kept.square().sum().backward()
    handle.remove()
    assert caught[0].grad is not None
    return kept.detach(), caught[0].grad


def assert_same(model_type: str, own: Any, plain: Any, inputs: dict[str, Tensor]) -> None:
    """Two models of a type find the same."""
    loose = {"rtol": 1e-3, "atol": 1e-4} if model_type in EXPERTS else {"rtol": 1e-9, "atol": 1e-10}
    for mine, theirs in zip(found(own, inputs), found(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, **loose)


def checkpoint(model: Any) -> None:
    """Compute blocks again in the backward pass, which transformers does in training alone; without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # OPT's is no module
            module.dropout = 0.0
    checkpoint_gradients(model)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is packed."""
    shapes: list[tuple[int, ...]] = []
    plain = Packing.pack

    def spy(self: Packing, given: Tensor) -> Tensor:
        shapes.append(tuple(given.shape))
        return plain(self, given)

    monkeypatch.setattr(Packing, "pack", spy)
    return shapes


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_models_find_the_same(monkeypatch: pytest.MonkeyPatch, model_type: str, checkpointing: bool) -> None:
    shapes = watched(monkeypatch)
    plain, own = models(model_type)
    inputs = padded(ARCHITECTURES[model_type].decoder)
    if checkpointing:
        for model in (plain, own):
            checkpoint(model)
    assert_same(model_type, own, plain, inputs)
    assert shapes


def test_blocks_see_the_real_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 of 27 tokens; then 15 of 18, and zeros up to a multiple of eight."""
    _, own = models("llama")
    seen: list[tuple[int, ...]] = []
    block = next(iter(blocks(own, ARCHITECTURES["llama"]).values()))
    block.mlp.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape)))
    inputs = padded(decoder=True)
    own(**inputs)
    inputs["attention_mask"][2:] = 0
    inputs["attention_mask"][1, 5] = 1
    own(**{name: one[:2] if isinstance(one, Tensor) else one for name, one in inputs.items()})
    assert [shape[:2] for shape in seen] == [(1, 16), (1, 16)]


@pytest.mark.parametrize("case", ["no padding", "no mask", "cache", "nothing real"])
def test_what_is_not_packed(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    shapes = watched(monkeypatch)
    _, own = models("llama")
    inputs = padded(decoder=True)
    own(**inputs)  # so that what an earlier batch left would be seen
    shapes.clear()
    if case == "no mask":
        del inputs["attention_mask"]
    elif case == "cache":
        inputs["use_cache"] = True  # type: ignore[assignment]
    else:
        inputs["attention_mask"].fill_(case == "no padding")
    own(**inputs)
    assert not shapes


@pytest.mark.parametrize("model_type", sorted(OWN & set(ARCHITECTURES)))
def test_an_attention_of_its_own_is_not_packed(model_type: str) -> None:
    _, own = models(model_type)
    assert packing_in(own) is None


def test_a_prefix_is_not_packed() -> None:
    """Its vectors have places in padded rows."""
    kept = {}
    for name, method in (("lora", LoRA(name="lora", targets=["q"])), ("prefix", PrefixKV(name="prefix_kv", prefix=2))):
        model = bare_model("llama", "generation")
        attach(model, ARCHITECTURES["llama"], [method], Head("generation"), set(), seed=0)
        kept[name] = packing_in(model) is not None
    assert kept == {"lora": True, "prefix": False}


def test_generation_of_a_packed_model() -> None:
    """Prompts padded on the left: with a cache nothing is packed, and the texts are the plain model's."""
    plain, own = models("llama")
    inputs = {name: one.flip(1) for name, one in padded(decoder=True).items() if isinstance(one, Tensor)}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": 2}
    assert torch.equal(own.generate(**inputs, **options), plain.generate(**inputs, **options))


ENCODERS = sorted(name for name in TYPES if not ARCHITECTURES[name].decoder)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_the_last_block_of_encoders_computes_first_tokens_alone(model_type: str) -> None:
    _, own = models(model_type)
    row, seen = ARCHITECTURES[model_type], []
    for block in blocks(own, row).values():
        for name in ("o", "up", "down"):
            module = block.get_submodule(row.places[name].path)
            module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    own(**padded(decoder=False))
    assert seen == [16, 16, 16, 3, 3, 3]


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_heads_that_read_all_tokens_get_them(model_type: str) -> None:
    """A head without pooler, and ModernBERT's mean over the row."""
    kind = "generation" if model_type == "bert" else "classification"
    plain = bare_model(model_type, kind).double()
    if model_type == "modernbert":
        plain.config.classifier_pooling = "mean"
    own = copy.deepcopy(plain)
    make_fast(own, ARCHITECTURES[model_type], packed=True)
    assert packing_in(own)
    for mine, theirs in zip(found(own, padded(False)), found(plain, padded(False)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_hidden_states_are_padded_ones() -> None:
    """Who asks for them gets what the model without packing gives."""
    plain, own = models("bert")
    mine, theirs = (model(**padded(False), output_hidden_states=True).hidden_states for model in (own, plain))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_a_fast_model_is_freed_with_its_last_user(model_type: str) -> None:
    """Nothing in it refers to it in a circle: base models are large, and the collector comes late."""
    gc.collect()
    gc.disable()
    try:
        _, own = models(model_type)
        own(**padded(ARCHITECTURES[model_type].decoder))
        gone = weakref.ref(own.get_input_embeddings()), weakref.ref(next(iter(own.children())))
        del own
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()

"""PyTorch's kernel for rows of different lengths: no CPU has it, so one made of plain products stands in for it."""

import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_attention import OWN, padded
from test_packing import assert_same, checkpoint, found, models
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen as torchs

from lorakit import attention, varlen
from lorakit.arch import ARCHITECTURES
from lorakit.kernels import as_on_gpu
from lorakit.packing import packing_in
from lorakit.varlen import Form, form_of, proved

DECODERS = sorted(name for name, row in ARCHITECTURES.items() if row.decoder and name not in OWN)
CPU = torch.device("cpu")
Kernel = Callable[..., Tensor]


def stand_in(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    begins: Tensor,
    *rest: Any,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What PyTorch documents: (tokens, heads, dim) each, rows from one of `begins` to the next; undefined behind."""
    key_begins, longest, key_longest = rest
    assert begins.dtype == torch.int32
    assert torch.equal(begins, key_begins)
    assert longest == key_longest == int(begins.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    out = [torch.full_like(query[int(begins[-1]) :], float("nan"))]
    for first, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        q, k, v = (one[first:end].transpose(0, 1) for one in (query, key, value))
        k, v = (one.repeat_interleave(len(q) // len(one), dim=0) for one in (k, v))
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if window_size == (-1, 0):
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        else:
            assert window_size == (-1, -1)
        out.insert(-1, (scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    """As on a GPU, with the stand-in; the list's last is the kernel, to be replaced."""
    kernels: list[Kernel] = [stand_in]

    def last(*given: Any, **named: Any) -> Tensor:
        return kernels[-1](*given, **named)

    monkeypatch.setattr(torchs, "varlen_attn", last)
    monkeypatch.setattr(varlen, "_DEVICES", ("cpu",))
    monkeypatch.setattr(varlen, "_DTYPES", (*varlen._DTYPES, torch.float32, torch.float64))
    proved.cache_clear()
    with as_on_gpu():
        yield kernels
    proved.cache_clear()


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", DECODERS)
def test_decoders_find_the_same(monkeypatch: pytest.MonkeyPatch, model_type: str, checkpointing: bool) -> None:
    calls: list[tuple[int, int]] = []
    real = attention.attend_rows

    def spy(form: Form, given: Any, bounds: Tensor, longest: int) -> Tensor:
        calls.append((len(bounds) - 1, longest))
        return real(form, given, bounds, longest)

    monkeypatch.setattr(attention, "attend_rows", spy)
    plain, own = models(model_type)
    for model in (plain, own):
        if getattr(model.config, "sliding_window", None):
            model.config.sliding_window = 16
    inputs = padded(decoder=True)
    inputs["attention_mask"][2, 2] = 1  # 9, 5 and 3 real tokens: a packed row of 24 ends with seven zeros
    if checkpointing:
        for model in (plain, own):
            checkpoint(model)
    assert_same(model_type, own, plain, inputs)
    assert set(calls) == {(4, 9)}


@pytest.mark.usefixtures("on_gpu")
def test_rows_beyond_a_window_have_a_mask_and_not_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(attention, "attend_rows", calls.append)
    plain, own = models("mistral")
    assert plain.config.sliding_window < 9
    inputs = padded(decoder=True)
    for mine, theirs in zip(found(own, inputs), found(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    assert not calls


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    "special", [{"dropout": 0.1}, {"position_bias": torch.zeros(1)}, {"softcap": 2.0}, {"cache": object()}]
)
def test_what_the_kernel_does_not_know_it_is_not_given(special: dict[str, Any]) -> None:
    given = [torch.zeros(1, 2, 8, 8)] * 3
    module = SimpleNamespace(is_causal=True)
    assert attention._form_of_rows(module, given, None, {})
    assert attention._form_of_rows(module, given, None, special) is None
    assert attention._form_of_rows(module, given, torch.ones(1, 1, 8, 8, dtype=torch.bool), {}) is None


def test_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in 16 bits, heads of sizes that FlashAttention has."""

    def form(dtype: torch.dtype, dim: int = 64, of_values: int | None = None) -> Form | None:
        query, key = (torch.empty(1, heads, 8, dim, dtype=dtype) for heads in (4, 2))
        return form_of(query, key, key[..., :of_values], None, True)

    assert form(torch.bfloat16) is None  # on a CPU
    monkeypatch.setattr(varlen, "_DEVICES", ("cpu",))
    assert form(torch.bfloat16) == Form(CPU, torch.bfloat16, 4, 2, 64, None, True)
    assert form(torch.float32) is form(torch.float64) is None
    assert form(torch.bfloat16, 264) is form(torch.bfloat16, 60) is form(torch.bfloat16, 64, 32) is None


def form(dtype: torch.dtype = torch.bfloat16, causal: bool = True) -> Form:
    return Form(CPU, dtype, 4, 2, 16, None, causal)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_right_kernel_is_proved(dtype: torch.dtype, causal: bool) -> None:
    assert proved(form(dtype, causal))


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:
        return above * 0.9


def over_all(*given: Any, **named: Any) -> Tensor:
    """Rows see one another."""
    bounds = torch.tensor([0, int(given[3][-1])], dtype=torch.int32)
    return stand_in(*given[:3], bounds, bounds, int(bounds[-1]), int(bounds[-1]), **named)


def as_numbers_that_are_none(*given: Any, **named: Any) -> Tensor:
    return stand_in(*given, **named) * float("nan")


def with_another_gradient(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
    return stand_in(query, _NoGradient.apply(key), value, *rest, **named)  # type: ignore[no-untyped-call]


def blind_to_causality(*given: Any, **named: Any) -> Tensor:
    return stand_in(*given, **named | {"window_size": (-1, -1)})


@pytest.mark.parametrize("wrong", [over_all, as_numbers_that_are_none, with_another_gradient, blind_to_causality])
def test_a_wrong_kernel_is_told_and_not_used(on_gpu: list[Kernel], wrong: Kernel) -> None:
    on_gpu.append(wrong)
    with pytest.warns(UserWarning, match=r"attention of packed rows is off by .*: not used"):
        assert not proved(form())


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError, TypeError])
def test_a_missing_kernel_is_not_used(on_gpu: list[Kernel], error: type[Exception]) -> None:
    def missing(*_: Any, **__: Any) -> Tensor:
        raise error("not on this GPU")

    on_gpu.append(missing)
    assert not proved(form())


def test_a_model_does_without_a_wrong_kernel(on_gpu: list[Kernel]) -> None:
    on_gpu.append(blind_to_causality)
    plain, own = models("llama")
    with pytest.warns(UserWarning, match="not used"):
        mine = found(own, padded(decoder=True))
    for one, other in zip(mine, found(plain, padded(decoder=True)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("on_gpu")
def test_a_proof_leaves_no_trace() -> None:
    """It may be asked for in the middle of a step: masks of dropout must be those of a run that did not ask."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert proved(form(torch.float32))
    assert torch.equal(torch.rand(2), expected)


def test_the_kernel_takes_what_it_is_given() -> None:
    """PyTorch's own, without data: its arguments, and that it has a gradient."""
    named = {"scale": None, "window_size": (-1, 0), "enable_gqa": True}
    inspect.signature(torchs.varlen_attn).bind(*range(7), **named)
    with FakeTensorMode():
        query, key, value = (torch.zeros(8, n, 16, dtype=torch.bfloat16).requires_grad_() for n in (4, 2, 2))
        bounds = torch.tensor([0, 5, 8], dtype=torch.int32)
        out = torchs.varlen_attn(query, key, value, bounds, bounds, 5, 5, **named)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        out.sum().backward()  # type: ignore[no-untyped-call]
        assert query.grad is not None
        assert (out.shape, query.grad.shape) == (query.shape, query.shape)


def test_zeros_at_the_end_are_a_row() -> None:
    """What the kernel leaves undefined would otherwise reach the weights' gradients."""
    _, own = models("llama")
    packing, seen = packing_in(own), []
    assert packing
    own.model.layers[0].register_forward_pre_hook(lambda *_: seen.append(packing.bounds))
    own(**padded(decoder=True))  # 9, 5 and 2 tokens: none
    short = padded(decoder=True)
    short["attention_mask"][1, 3:] = 0
    own(**short)
    assert [(bounds.tolist(), longest) for bounds, longest in seen] == [([0, 9, 14, 16], 9), ([0, 9, 12, 14, 16], 9)]

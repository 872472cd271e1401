"""Bases in 4 bits: what is quantised, how well, and that training on it is sound."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorakit.errors import ModelError, RecipeError
from lorakit.methods import LoRA
from lorakit.model import Base, Head, Prepared, prepare
from lorakit.modules import module_rows, parameter_groups
from lorakit.nf4 import NF4Outline, elements, footprint, is_nf4, library, outlined, round_trip, weight_of
from lorakit.surgery import canonical, trainable_parameters
from lorakit.tiny import make_tiny_base

Tiny = Callable[[str], Path]
NF4 = [
    -1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1,
]  # fmt: skip
"""The 16 values of Dettmers et al. 2023, appendix E."""
GENERATION = Head("generation")
ALL = LoRA(rank=2, targets=["all-linear"])


def quantised(base: Path, methods: list[Any] | None = None, head: Head = GENERATION) -> Prepared:
    return prepare(Base(base=str(base), quantize="nf4"), [ALL] if methods is None else methods, head, 0)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path in the untouched model → the layer in 4 bits."""
    return {canonical(f"{path}.")[:-1]: module for path, module in model.named_modules() if is_nf4(module)}


def codes(model: nn.Module) -> dict[str, Tensor]:
    return {path: layer.get_parameter("weight").detach().clone() for path, layer in layers(model).items()}


def in_dtype(base: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy of a base whose files have another dtype."""
    shutil.copytree(base, folder)
    state = {name: value.to(dtype) for name, value in load_file(base / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_sixteen_values() -> None:
    """By the definition: with one magnitude for all blocks, double quantisation is exact."""
    weight = torch.tensor(NF4).repeat(64, 4)
    found = round_trip(weight)
    torch.testing.assert_close(found.float(), weight.bfloat16().float(), atol=0.004, rtol=0)
    between = (torch.tensor(NF4[1:]) + torch.tensor(NF4[:-1])) / 2
    block = torch.cat([between - 0.002, between + 0.002, torch.tensor([1.0] + [0.0] * 33)])
    expected = torch.cat([torch.tensor(NF4[:-1]), torch.tensor(NF4[1:]), block[30:]])
    torch.testing.assert_close(round_trip(block.repeat(64, 1)).float(), expected.repeat(64, 1), atol=0.004, rtol=0)


def test_the_error_and_the_size_of_normal_weights() -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    error = (round_trip(weight).float() - weight).norm() / weight.norm()
    assert 0.088 < error < 0.096, "9.2 % of normal weights, as measured for the paper's code"
    layer = library().nn.Linear4bit(512, 256, False, torch.bfloat16, quant_type="nf4")
    layer.weight = library().nn.Params4bit(weight.bfloat16(), False, quant_type="nf4", module=layer).to("cpu")
    found = footprint(nn.Sequential(layer))
    assert (found.modules, found.parameters, found.bytes) == (1, 131_072, 65_536 + 2_048 + 8 * 4 + 4)
    assert found.bits == pytest.approx(4.127, abs=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "opt"])
def test_a_base_is_quantised_as_a_merge_does_it_again(
    tiny: Tiny, tmp_path: Path, model_type: str, dtype: torch.dtype
) -> None:
    """To the bit, whatever the files have: that is what merging onto the trained base stands on."""
    base = in_dtype(tiny(model_type), tmp_path / "base", dtype)
    prepared = quantised(base)
    assert prepared.quantised is not None
    found, files = layers(prepared.model), load_file(base / "model.safetensors")
    assert sorted(found) == prepared.quantised.modules
    for path, layer in found.items():
        weight = weight_of(layer)
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, round_trip(files[prepared.file_names[f"{path}.weight"]])), path


def test_what_is_quantised(tiny: Tiny) -> None:
    prepared = quantised(tiny("llama"))
    places = {path.rpartition(".")[2] for path in layers(prepared.model)}
    assert places == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    dtypes = {name: parameter.dtype for name, parameter in prepared.model.named_parameters()}
    assert {dtypes[name] for name in dtypes if "norm" in name} == {torch.float32}
    assert {dtypes[name] for name in dtypes if ".update." in name} == {torch.float32}
    assert {dtypes["model.embed_tokens.weight"], prepared.model.lm_head.weight.dtype} == {torch.bfloat16}
    assert "quantization_config" not in prepared.model.config.to_dict()


def test_the_task_s_new_head_is_whole(tiny: Tiny) -> None:
    prepared = quantised(tiny("bert"), [LoRA(rank=2, targets=["q", "v"])], Head("classification", ("no", "yes")))
    assert not any("classifier" in path for path in layers(prepared.model))
    assert len(layers(prepared.model)) == 6 * prepared.model.config.num_hidden_layers + 1, "and the body's pooler"
    assert prepared.model.classifier.weight.dtype == torch.float32


def test_what_a_skeleton_lists_and_counts_is_what_is_loaded(tiny: Tiny) -> None:
    live = quantised(tiny("llama"))
    skeleton = prepare(Base(base=str(tiny("llama")), quantize="nf4"), [ALL], GENERATION, 0, skeleton=True)
    assert skeleton.quantised == live.quantised
    counts = parameter_groups(live.model, ())
    assert counts == parameter_groups(skeleton.model, ())
    assert skeleton.quantised is not None
    skeleton.model.to(torch.bfloat16)
    for parameter in trainable_parameters(skeleton.model).values():
        parameter.data = parameter.data.float()
    outlined(skeleton.model, skeleton.quantised.modules)
    assert footprint(skeleton.model) == footprint(live.model)
    assert counts == parameter_groups(skeleton.model, ())
    assert module_rows(live.model, live.coverage) == module_rows(skeleton.model, skeleton.coverage)
    assert {row.kind for row in module_rows(live.model, live.coverage) if row.adapted} == {"Linear4bit"}


def step(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Gradients of a training step, and of nothing else."""
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in trainable_parameters(model).items()}


def look(model: Any, ids: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits: Tensor = model(input_ids=ids).logits
    return logits


def trained_a_little(folder: Path) -> Any:
    """With updates that are not zero, so that every matrix gets a gradient, and sizes that bitsandbytes repacks."""
    model = quantised(make_tiny_base("llama", folder / "base", hidden_size=64, intermediate_size=128)).model
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.02)
    return model


def test_an_evaluation_changes_no_gradient_after_it(tmp_path: Path) -> None:
    """Bitsandbytes 0.50.2 repacks weights in the first evaluation on a CPU with AVX512-BF16, and reads them wrongly."""
    model, ids = trained_a_little(tmp_path), torch.arange(10, 42).reshape(2, 16)
    before, frozen = step(model, ids), codes(model)
    first = look(model, ids)
    after = step(model, ids)
    assert all(grad.abs().max() > 0 for grad in before.values())
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
    assert torch.equal(look(model, ids), first)
    for path, values in codes(model).items():
        assert torch.equal(values, frozen[path]), path


@pytest.mark.filterwarnings("ignore:bitsandbytes.*autograd kernel was not registered:UserWarning")
def test_without_the_fix_that_would_be_seen(tmp_path: Path) -> None:
    if not library().functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, for which weights would be repacked")
    model, ids = trained_a_little(tmp_path), torch.arange(10, 42).reshape(2, 16)
    for layer in layers(model).values():
        assert layer.support_avx512bf16_for_cpu is False
        layer.support_avx512bf16_for_cpu = True
    before = step(model, ids)
    look(model, ids)
    after = step(model, ids)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_products_are_those_of_the_dequantised_weights(tiny: Tiny) -> None:
    for layer in layers(quantised(tiny("llama"), []).model).values():
        weight = weight_of(layer)
        x = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=True)
        x.data = x.data.bfloat16().float()
        out = layer(x)
        torch.testing.assert_close(out, x @ weight.float().T, atol=0.02, rtol=0.02)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        torch.testing.assert_close(gradient, weight.float().sum(0).expand_as(x), atol=0.05, rtol=0.05)


def test_a_plan_s_layer_makes_what_the_real_one_makes() -> None:
    plain = nn.Linear(48, 32, bias=True)
    layer = NF4Outline(plain)
    x = torch.zeros(2, 48, requires_grad=True)
    out = layer(x)
    assert (out.shape, out.dtype, elements(layer.weight)) == ((2, 32), torch.float32, 32 * 48)
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("model_type", ["gpt2"])
def test_other_matrices_are_refused_by_name(tiny: Tiny, model_type: str) -> None:
    with pytest.raises(ModelError, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D"):
        quantised(tiny(model_type))


def test_a_base_that_is_quantised_already_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny("llama"), base)
    fields = json.loads((base / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(fields))
    for quantize in (None, "nf4"):
        with pytest.raises(ModelError, match="quantised already; name the base that they were made from"):
            prepare(Base(base=str(base), quantize=quantize), [], GENERATION, 0)


def test_without_bitsandbytes_one_line_says_what_to_install(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorakit.nf4.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError) as raised:
        quantised(tiny("llama"))
    assert raised.value.problems == ("model.quantize: bitsandbytes is not installed: pip install 'lorakit[qlora]'",)
    prepare(Base(base=str(tiny("llama")), quantize="nf4"), [], GENERATION, 0, skeleton=True)


def test_importing_it_asks_nobody_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorakit import nf4

    before = sys.modules.get("kernels")
    with nf4._no_kernels(), pytest.raises(ImportError):
        import kernels  # noqa: F401
    assert sys.modules.get("kernels") is before

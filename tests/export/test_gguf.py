"""llama.cpp's adapter file: names, the order of rows, the scale, and what it cannot hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapted import open_adapted, tiny_base
from gguf import GGUFReader, GGUFType, GGUFWriter, Keys

from lorakit.checkpoint import Opened
from lorakit.errors import MergeError
from lorakit.export import export
from lorakit.export.base import verify
from lorakit.export.card import CARD
from lorakit.export.gguf import ADAPTER, KINDS, Gguf
from lorakit.methods import Full, LoRA, Method

MIXED = LoRA(rank=4, alpha=12, targets=["all-linear"], ranks={"*.layers.1.*": 3}, alphas={"*.o_proj": 5.0}, rslora=True)


def tensors_of(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(directory / ADAPTER).tensors}


@pytest.mark.parametrize("model_type", KINDS)
def test_every_architecture_reads_back(tmp_path: Path, model_type: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [MIXED], "generation")
    report = export(opened, "gguf", tmp_path / "out")
    assert set(report.files) == {ADAPTER, CARD}
    assert report.max_difference < 1e-6
    assert report.modules == len(tensors_of(tmp_path / "out")) // 2


def test_the_names_and_shapes_are_llama_cpps(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [LoRA(rank=4, targets=["all-linear"])], "generation")
    export(opened, "gguf", tmp_path / "out")
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    found = tensors_of(tmp_path / "out")
    assert found.keys() == {f"blk.{i}.{name}.weight.lora_{factor}" for i in (0, 1) for name in names for factor in "ab"}
    assert found["blk.0.ffn_down.weight.lora_a"].shape == (4, 96)
    assert found["blk.0.ffn_down.weight.lora_b"].shape == (64, 4)
    reader = GGUFReader(tmp_path / "out" / ADAPTER)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        Keys.General.ARCHITECTURE: "llama",
        Keys.General.TYPE: "adapter",
        Keys.General.NAME: "test",
        Keys.Adapter.TYPE: "lora",
        Keys.Adapter.LORA_ALPHA: 4.0,
    }


def test_rows_of_q_and_k_follow_llama_cpps_rotary_embedding(tmp_path: Path) -> None:
    """Four heads of q and two of k, 16 rows each: 0, 8, 1, 9, … of every head; v stays."""
    opened = open_adapted(tiny_base(tmp_path, "llama"), [LoRA(rank=4, alpha=4, targets=["q", "k", "v"])], "generation")
    export(opened, "gguf", tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    head = [row for pair in zip(range(8), range(8, 16), strict=True) for row in pair]
    for name, last, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        own = opened.state[f"model.layers.0.self_attn.{last}.update.B"]
        rows = [16 * h + row for h in range(heads) for row in head]
        assert torch.equal(torch.from_numpy(found[f"blk.0.{name}.weight.lora_b"]), own[rows])
    own = opened.state["model.layers.0.self_attn.v_proj.update.B"]
    assert torch.equal(torch.from_numpy(found["blk.0.attn_v.weight.lora_b"]), own)


def test_each_tensor_keeps_its_own_scale(tmp_path: Path) -> None:
    """llama.cpp has one alpha, and divides it by each tensor's rank."""
    method = LoRA(rank=4, alpha=8, targets=["v", "down"], ranks={"v": 2}, alphas={"down": 6.0})
    opened = open_adapted(tiny_base(tmp_path, "qwen2"), [method], "generation")
    export(opened, "gguf", tmp_path / "out")
    found = tensors_of(tmp_path / "out")
    for name, path, scaling in (("attn_v", "self_attn.v_proj", 8 / 2), ("ffn_down", "mlp.down_proj", 6 / 4)):
        a, b = (torch.from_numpy(found[f"blk.1.{name}.weight.lora_{factor}"]) for factor in "ab")
        own_a, own_b = (opened.state[f"model.layers.1.{path}.update.{factor}"] for factor in "AB")
        torch.testing.assert_close(4.0 / b.shape[1] * b @ a, scaling * own_b @ own_a)


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [MIXED], "generation")
    for name in ("first", "second"):
        export(opened, "gguf", tmp_path / name)
    assert (tmp_path / "first" / ADAPTER).read_bytes() == (tmp_path / "second" / ADAPTER).read_bytes()


# --- what it refuses, before anything is written ---


@pytest.mark.parametrize(
    ("model_type", "kind", "methods", "message"),
    [
        ("gpt2", "generation", [LoRA(rank=2)], "gpt2: no GGUF adapters.* but for: llama, .*use lorakit merge"),
        ("mixtral", "generation", [LoRA(rank=2)], "mixtral: no GGUF adapters"),
        ("llama", "generation", [LoRA(rank=2, dora=True)], "has magnitudes of DoRA, which llama.cpp does not take"),
        ("qwen2", "generation", [LoRA(rank=2, bias="all")], "is a trained bias, which llama.cpp does not take"),
        ("llama", "classification", [LoRA(rank=2)], "score.weight: is a trained head, which llama.cpp does not take"),
        (
            "llama",
            "generation",
            [LoRA(rank=2, targets=["model.embed_tokens"])],
            "embed_tokens: is outside the blocks",
        ),
        ("llama", "generation", [Full()], "adapts no matrix"),
    ],
)
def test_what_llama_cpp_does_not_take_is_refused(
    tmp_path: Path, model_type: str, kind: str, methods: list[Method], message: str
) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), methods, kind)
    with pytest.raises(MergeError, match=message):
        export(opened, "gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [f"base-{model_type}"]


# --- reading back catches what is wrong ---


def rewritten(out: Path, change: Any, **fields: Any) -> None:
    """The file again, with other tensors or fields."""
    values = {"architecture": "llama", "type": GGUFType.ADAPTER, "adapter": "lora", "alpha": 4.0} | fields
    tensors = tensors_of(out)
    if change:
        change(tensors)
    writer = GGUFWriter(out / ADAPTER, values["architecture"])
    writer.add_type(values["type"])
    writer.add_string(Keys.Adapter.TYPE, values["adapter"])
    writer.add_float32(Keys.Adapter.LORA_ALPHA, values["alpha"])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_transformers_order(tensors: dict[str, Any]) -> None:
    name = "blk.0.attn_q.weight.lora_b"
    tensors[name] = np.ascontiguousarray(tensors[name].reshape(4, 8, 2, -1).swapaxes(1, 2).reshape(64, -1))


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors["blk.0.attn_q.weight.lora_a"]


def drop_pair(tensors: dict[str, Any]) -> None:
    del tensors["blk.0.attn_q.weight.lora_a"], tensors["blk.0.attn_q.weight.lora_b"]


def add_norm(tensors: dict[str, Any]) -> None:
    tensors["output_norm.weight"] = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (in_transformers_order, {}, r"layers\.0\.self_attn\.q_proj: its update differs"),
        (drop_one, {}, "blk.0.attn_q.weight: is no adapted module, or has one factor only"),
        (drop_pair, {}, r"layers\.0\.self_attn\.q_proj: is not in the export"),
        (add_norm, {}, "output_norm.weight: llama.cpp takes no tensor of this name"),
        (None, {"alpha": 5.0}, "its update differs by 2.5e-01"),
        (None, {"architecture": "qwen2"}, "general.architecture: is qwen2; llama.cpp takes llama alone"),
        (None, {"type": GGUFType.MODEL}, "general.type: is model"),
        (None, {"adapter": "control"}, "adapter.type: is control"),
    ],
)
def test_a_damaged_file_is_caught(tmp_path: Path, change: Any, fields: dict[str, Any], message: str) -> None:
    opened: Opened = open_adapted(tiny_base(tmp_path, "llama"), [LoRA(rank=4, targets=["q", "v"])], "generation")
    Gguf().write(opened, tmp_path)
    rewritten(tmp_path, None)
    verify(opened, Gguf().read(opened, tmp_path), 1e-6)
    rewritten(tmp_path, change, **fields)
    with pytest.raises(MergeError, match=message):
        verify(opened, Gguf().read(opened, tmp_path), 1e-6)

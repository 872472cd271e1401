import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import CASES, EMBEDDINGS, live_model, logits, open_adapted, tiny_base
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.checkpoint import Opened
from lorakit.errors import MergeError, RecipeError
from lorakit.export import EXPORTERS, export
from lorakit.export.base import verify
from lorakit.export.card import CARD
from lorakit.export.peft import CONFIG, WEIGHTS, Peft
from lorakit.merge import merge
from lorakit.methods import Full, LoRA, Method

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
QV = LoRA(rank=4, alpha=12, targets=["q", "v"])


def methods_of(model_type: str) -> dict[str, LoRA]:
    block = "*.h.1.*" if model_type == "gpt2" else "*.layers.1.*" if model_type == "llama" else "*.layer.1.*"
    return {
        "qv": QV,
        "all-linear": LoRA(rank=4, targets=["all-linear"], dropout=0.1),
        "embedding": LoRA(rank=4, targets=[EMBEDDINGS[model_type], "o"]),
        "ranks": LoRA(rank=4, targets=["q", "v", "up"], ranks={"v": 2, block: 3}, alphas={block: 5.0, "up": 7}),
        "rslora": LoRA(rank=4, targets=["q", "v"], rslora=True, ranks={"v": 3}),
    }


def config_of(directory: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return fields


def peft_model(base: Path, directory: Path, kind: str) -> torch.nn.Module:
    """The base with the exported adapter, by PEFT; every key of the file must arrive."""
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    options: dict[str, Any] = {} if kind == "generation" else {"num_labels": 3, "pad_token_id": 0}
    if kind != "generation" and "roberta" in base.name:
        options["pad_token_id"] = 1
    model = PeftModel.from_pretrained(auto.from_pretrained(base, **options), str(directory))
    loaded: torch.nn.Module = model.eval()
    return loaded


@pytest.mark.parametrize("targets", ["qv", "all-linear", "embedding", "ranks", "rslora"])
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_peft_computes_the_same_logits(tmp_path: Path, model_type: str, kind: str, targets: str) -> None:
    base = tiny_base(tmp_path, model_type)
    opened = open_adapted(base, [methods_of(model_type)[targets]], kind)
    report = export(opened, "peft", tmp_path / "out")
    assert set(report.files) == {path.name for path in (tmp_path / "out").iterdir()} == {CARD, CONFIG, WEIGHTS}
    assert report.max_difference < 1e-6
    theirs = logits(peft_model(base, tmp_path / "out", kind))
    torch.testing.assert_close(theirs, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize(("model_type", "kind"), [case for case in CASES if case[0] != "llama"])
def test_peft_loads_trained_biases(tmp_path: Path, model_type: str, kind: str, bias: Any) -> None:
    base = tiny_base(tmp_path, model_type)
    opened = open_adapted(base, [QV.model_copy(update={"bias": bias})], kind)
    export(opened, "peft", tmp_path / "out")
    assert config_of(tmp_path / "out")["bias"] == bias
    theirs = logits(peft_model(base, tmp_path / "out", kind))
    torch.testing.assert_close(theirs, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_the_files_are_those_that_peft_writes(tmp_path: Path, model_type: str, kind: str) -> None:
    base = tiny_base(tmp_path, model_type)
    export(open_adapted(base, [QV], kind), "peft", tmp_path / "out")
    model: Any = peft_model(base, tmp_path / "out", kind)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "theirs"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=0, rtol=0)
    written = config_of(tmp_path / "theirs")
    for key, value in config_of(tmp_path / "out").items():
        if key == "modules_to_save":  # PEFT adds the usual names of heads by itself
            assert set(value or ()) <= set(written[key] or ())
        elif key not in {"base_model_name_or_path", "target_modules", "peft_version"}:
            assert written[key] == value, key


def test_the_configuration_says_what_was_trained(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "roberta")
    method = LoRA(rank=4, alpha=12, dropout=0.25, targets=["q", "v"])
    export(open_adapted(base, [method], "classification"), "peft", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert {key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "task_type", "bias")} == {
        "r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.25,
        "task_type": "SEQ_CLS",
        "bias": "none",
    }
    assert config["target_modules"] == ["query", "value"]
    assert config["modules_to_save"] == ["classifier"]
    assert config["base_model_name_or_path"] == "base-roberta"
    assert config["fan_in_fan_out"] is config["use_rslora"] is config["use_dora"] is False
    assert str(tmp_path) not in (tmp_path / "out" / CONFIG).read_text()
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).peft_type == "LORA"


def test_names_that_would_hit_more_are_written_in_full(tmp_path: Path) -> None:
    """BERT calls three matrices of a block, and its pooler, "dense"."""
    base = tiny_base(tmp_path, "bert")
    opened = open_adapted(base, [LoRA(rank=4, targets=["o"])], "classification")
    export(opened, "peft", tmp_path / "out")
    assert config_of(tmp_path / "out")["target_modules"] == [
        f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)
    ]
    model: Any = peft_model(base, tmp_path / "out", "classification")
    assert sum(name.endswith("lora_A") for name, _ in model.named_modules()) == 2


def test_row_blocks_become_one_pair_of_their_ranks_sum(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    opened = open_adapted(base, [QV], "generation")
    export(opened, "peft", tmp_path / "out")
    tensors, path = load_file(tmp_path / "out" / WEIGHTS), "transformer.h.0.attn.c_attn"
    a, b = (tensors[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "AB")
    assert (a.shape, b.shape) == ((8, 64), (192, 8))
    assert torch.equal(a[:4], opened.state[f"{path}.update.q.A"])
    assert torch.equal(b[:64, :4], opened.state[f"{path}.update.q.B"])
    assert torch.equal(b[128:, 4:], opened.state[f"{path}.update.v.B"])
    assert not b[64:128].any()
    assert not b[:64, 4:].any()
    assert not b[128:, :4].any()
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (8, 24, True)


def test_row_blocks_of_other_scalings_keep_them(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    method = LoRA(rank=4, targets=["q", "v"], ranks={"v": 2}, alphas={"q": 6.0, "v": 10.0})
    opened = open_adapted(base, [method], "generation")
    export(opened, "peft", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["r"], config["lora_alpha"]) == (6, 9)
    b = load_file(tmp_path / "out" / WEIGHTS)["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    own = opened.state["transformer.h.0.attn.c_attn.update.v.B"]
    torch.testing.assert_close(b[128:, 4:] * 1.5, own * 5.0)
    theirs = logits(peft_model(base, tmp_path / "out", "generation"))
    torch.testing.assert_close(theirs, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


def test_patterns_name_the_modules_that_differ(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    method = LoRA(rank=4, alpha=8, targets=["all-linear"], ranks={"*.layers.1.*.q_proj": 2}, alphas={"v": 5.0})
    export(open_adapted(base, [method], "generation"), "peft", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["rank_pattern"] == {r"model\.layers\.1\.self_attn\.q_proj": 2}
    assert config["alpha_pattern"] == {rf"model\.layers\.{i}\.self_attn\.v_proj": 5 for i in (0, 1)}
    assert (config["r"], config["lora_alpha"]) == (4, 8)


@pytest.mark.parametrize("rank", [3, 6, 7])
def test_rank_stabilised_scaling_is_kept(tmp_path: Path, rank: int) -> None:
    base = tiny_base(tmp_path, "bert")
    opened = open_adapted(base, [LoRA(rank=rank, alpha=16, targets=["q"], rslora=True)], "classification")
    export(opened, "peft", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["use_rslora"], config["lora_alpha"], config["r"]) == (True, 16, rank)


def test_a_pooler_that_the_base_lacks_is_saved_whole(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    tensors = load_file(base / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "pooler" not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    opened = open_adapted(base, [QV], "classification")
    export(opened, "peft", tmp_path / "out")
    assert config_of(tmp_path / "out")["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    theirs = logits(peft_model(base, tmp_path / "out", "classification"))
    torch.testing.assert_close(theirs, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [QV], "classification")
    for name in ("first", "second"):
        export(opened, "peft", tmp_path / name)
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_loaded_model_exports_what_a_skeleton_does(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    for skeleton in (True, False):
        export(open_adapted(base, [QV], "classification", skeleton=skeleton), "peft", tmp_path / str(skeleton))
    assert (tmp_path / "True" / WEIGHTS).read_bytes() == (tmp_path / "False" / WEIGHTS).read_bytes()


# --- what the format cannot hold ---


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([Full()], "adapts no matrix.*use lorakit merge"),
        ([LoRA(rank=2, targets=["q"]), Full()], r"layer\.0\.attention\.self\.query: is both adapted and trained whole"),
    ],
)
def test_what_peft_cannot_express_is_refused(tmp_path: Path, methods: list[Method], message: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), methods, "classification")
    with pytest.raises(MergeError, match=message):
        export(opened, "peft", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base-bert"]


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    export(opened, "peft", tmp_path / "out")
    with pytest.raises(MergeError, match="exists already"):
        export(opened, "peft", tmp_path / "out")
    with pytest.raises(MergeError, match="exists already"):
        merge(opened, tmp_path / "out", verify="none")


# --- reading back catches what is wrong ---


def change_tensor(out: Path, change: Any) -> None:
    tensors = load_file(out / WEIGHTS)
    change(tensors)
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


def change_config(out: Path, **fields: Any) -> None:
    (out / CONFIG).write_text(json.dumps(config_of(out) | fields))


def scale_one(tensors: dict[str, Tensor]) -> None:
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] *= 1.001


def drop_pair(tensors: dict[str, Tensor]) -> None:
    for key in [key for key in tensors if "layer.0.attention.self.query" in key]:
        del tensors[key]


def wrong_prefix(tensors: dict[str, Tensor]) -> None:
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key.replace("base_model.model", "model")] = tensors.pop(key)


def damage_head(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.classifier.bias"] += 1e-6


def extra_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.bert.pooler.dense.bias"] = torch.zeros(64)


def drop_head(tensors: dict[str, Tensor]) -> None:
    del tensors["base_model.model.classifier.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scale_one, "its update differs by 1.0e-03"),
        (drop_pair, "layer.0.attention.self.query: is not in the export"),
        (wrong_prefix, "PEFT would ignore it"),
        (damage_head, "classifier.bias: differs"),
        (drop_head, "classifier.weight: is not in the export"),
        (extra_tensor, "bert.pooler.dense.bias: was not trained"),
    ],
)
def test_damaged_tensors_are_caught(tmp_path: Path, change: Any, message: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    Peft().write(opened, tmp_path)
    verify(opened, Peft().read(opened, tmp_path), 1e-6)
    change_tensor(tmp_path, change)
    with pytest.raises(MergeError, match=message):
        verify(opened, Peft().read(opened, tmp_path), 1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_alpha": 13}, "its update differs by 8.3e-02"),
        ({"use_rslora": True}, "its update differs by 1.0e"),
        ({"r": 8}, "the configuration says rank 8, the file holds 4"),
        ({"alpha_pattern": {"query": 6}}, "its update differs by 5.0e-01"),
        ({"target_modules": ["query", "vaule"]}, r"self\.value: PEFT would ignore it: target_modules do not name it"),
    ],
)
def test_a_wrong_configuration_is_caught(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    Peft().write(opened, tmp_path)
    change_config(tmp_path, **fields)
    with pytest.raises(MergeError, match=message):
        verify(opened, Peft().read(opened, tmp_path), 1e-6)


def test_a_wrong_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Peft):
        def write(self, opened: Opened, out: Path) -> None:
            super().write(opened, out)
            change_tensor(out, scale_one)

    monkeypatch.setitem(EXPORTERS, "peft", Wrong)
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [QV], "generation")
    with pytest.raises(MergeError, match="the export does not hold the adapter"):
        export(opened, "peft", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base-gpt2"]


def test_the_report_is_a_table_and_json(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    report = export(opened, "peft", tmp_path / "out")
    assert json.loads(json.dumps(report.as_dict()))["modules"] == 4
    assert dict(report.rows())["whole tensors"] == "2"


def test_the_table_of_formats_is_named_by_their_sections() -> None:
    assert {name: exporter(name=name).name for name, exporter in EXPORTERS.items()} == {
        name: name for name in EXPORTERS
    }


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    with pytest.raises(RecipeError, match="--to pft: no such format; there are: peft, portable, gguf"):
        export(opened, "pft", tmp_path / "out")

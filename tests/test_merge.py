import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import ARCHITECTURES, CASES, EMBEDDINGS, batches, live_model, logits, open_adapted, tiny_base
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import lorakit.merge
import lorakit.merge_check
from lorakit.errors import LorakitError, MergeError
from lorakit.layers.low_rank import LowRankEdit
from lorakit.merge import merge
from lorakit.merge_check import verify_logits, verify_tensors
from lorakit.merge_plan import plan_merge
from lorakit.methods import Full, LoRA, Method
from lorakit.tiny import make_tiny_base
from lorakit.weights import ELEMENT_BYTES, Chunk, model_entries, read_header

QV = LoRA(rank=4, targets=["q", "v"])


def reload(directory: Path, kind: str, **options: Any) -> torch.nn.Module:
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    model: torch.nn.Module = auto.from_pretrained(directory, **options).eval()
    return model


def rewrite(base: Path, change: Any) -> None:
    """Pass every tensor of a one-file base through `change`: (name, tensor) → (name, tensor) or None."""
    file = base / "model.safetensors"
    changed = [change(name, value) for name, value in load_file(file).items()]
    save_file({name: value.contiguous() for name, value in filter(None, changed)}, file, metadata={"format": "pt"})


def shard(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="60KB")


def methods_of(model_type: str) -> dict[str, Method]:
    return {
        "qv": QV,
        "all-linear": LoRA(rank=4, targets=["all-linear"]),
        "embedding": LoRA(rank=4, targets=[EMBEDDINGS[model_type], "q"]),
    }


@pytest.mark.parametrize("targets", ["qv", "all-linear", "embedding"])
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_plain_transformers_reloads_the_adapted_model(tmp_path: Path, model_type: str, kind: str, targets: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [methods_of(model_type)[targets]], kind)
    report = merge(opened, tmp_path / "out", batches=batches())
    adapted, base = logits(live_model(opened)), logits(lorakit.merge_check._base_model(opened))
    merged = logits(reload(tmp_path / "out", kind))
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    assert (merged - base).abs().max() > 0.1
    assert report.dtype == "float32"
    assert report.logits is not None
    assert report.logits.lost_share < 1e-4


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_full_fine_tuning_replaces_every_tensor(tmp_path: Path, model_type: str, kind: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [Full()], kind)
    report = merge(opened, tmp_path / "out", batches=batches())
    torch.testing.assert_close(logits(reload(tmp_path / "out", kind)), logits(live_model(opened)), atol=1e-5, rtol=1e-5)
    assert report.copied == report.merged == 0
    assert report.replaced + report.added == len(opened.state)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_trained_biases_replace_the_bases(tmp_path: Path, model_type: str, bias: Any) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [QV.model_copy(update={"bias": bias})], "classification")
    report = merge(opened, tmp_path / "out", batches=batches())
    assert report.replaced == sum(name.endswith(".bias") and "classifier" not in name for name in opened.state)
    assert report.replaced > 0
    merged = logits(reload(tmp_path / "out", "classification"))
    torch.testing.assert_close(merged, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


def test_untouched_tensors_keep_their_bytes_and_keys_outside_the_task_go(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "roberta")
    report = merge(open_adapted(base, [QV], "classification"), tmp_path / "out", batches=batches())
    before, after = model_entries(base), model_entries(tmp_path / "out")
    changed = {key for key in before.keys() & after.keys() if before[key].read() != after[key].read()}
    assert changed == {
        f"roberta.encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("query", "value")
    }
    assert before.keys() - after.keys() == {key for key in before if key.startswith("lm_head.")}
    assert after.keys() - before.keys() == {
        f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")
    }
    counts = (report.copied, report.merged, report.replaced, report.added, report.dropped)
    assert counts == (len(before) - 5 - 4, 4, 0, 4, 5)
    assert list(after)[: len(after) - 4] == [key for key in before if key in after], "the files' order is kept"


def test_merged_values_are_the_papers_formula(tmp_path: Path) -> None:
    """W + (alpha / r) B A, written out here; GPT-2's c_attn is stored transposed and takes q in its first third."""
    base = tiny_base(tmp_path, "gpt2")
    opened = open_adapted(base, [LoRA(rank=4, alpha=12, targets=["q"])], "generation")
    merge(opened, tmp_path / "out", verify="none")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    key = "transformer.h.1.attn.c_attn"
    delta = 3.0 * opened.state[f"{key}.update.q.B"] @ opened.state[f"{key}.update.q.A"]
    expected = before[f"{key}.weight"].clone()
    expected[:, :64] += delta.T
    torch.testing.assert_close(after[f"{key}.weight"], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "generation"])
@pytest.mark.parametrize("tied", [False, True])
def test_sharded_bases_give_the_same_shards(tmp_path: Path, kind: str, tied: bool) -> None:
    base = tiny_base(tmp_path, "llama", tie_word_embeddings=tied)
    shard(base)
    opened = open_adapted(base, [LoRA(rank=4, targets=["q", "model.embed_tokens"])], kind)
    merge(opened, tmp_path / "out", batches=batches())
    shards = {path.name for path in base.glob("*.safetensors")}
    assert len(shards) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == set(index["weight_map"].values())
    assert set(index["weight_map"].values()) <= shards
    for name in shards & set(index["weight_map"].values()):
        kept = set(read_header(tmp_path / "out" / name)[0])
        assert kept == {key for key, place in index["weight_map"].items() if place == name}
    sizes = (entry.stop - entry.start for entry in model_entries(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == sum(sizes)
    torch.testing.assert_close(logits(reload(tmp_path / "out", kind)), logits(live_model(opened)), atol=1e-5, rtol=1e-5)


def unprefixed(name: str, value: Tensor) -> tuple[str, Tensor]:
    return name.removeprefix("transformer.").removeprefix("bert."), value


def legacy_norms(name: str, value: Tensor) -> tuple[str, Tensor]:
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return old, value


@pytest.mark.parametrize(
    ("model_type", "kind", "change"),
    [
        ("gpt2", "generation", unprefixed),
        ("gpt2", "classification", unprefixed),
        ("bert", "classification", unprefixed),
        ("bert", "classification", legacy_norms),
    ],
)
@pytest.mark.parametrize("method", [QV, QV.model_copy(update={"bias": "all"}), Full()], ids=["lora", "bias", "full"])
def test_the_files_own_names_are_kept_and_reload(
    tmp_path: Path, model_type: str, kind: str, change: Any, method: Method
) -> None:
    base = tiny_base(tmp_path, model_type)
    rewrite(base, change)
    opened = open_adapted(base, [method], kind)
    merge(opened, tmp_path / "out", batches=batches())
    names = set(model_entries(tmp_path / "out"))
    new = {name for name in names if name.startswith(("classifier", "score"))}
    assert names - new <= set(model_entries(base))
    torch.testing.assert_close(logits(reload(tmp_path / "out", kind)), logits(live_model(opened)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("adapted", ["embedding", "head"])
def test_an_adapted_tied_embedding_parts_from_its_twin(tmp_path: Path, model_type: str, adapted: str) -> None:
    base = tiny_base(tmp_path, model_type, tie_word_embeddings=True)
    embedding = f"{EMBEDDINGS[model_type]}.weight"
    before = model_entries(base)
    assert "lm_head.weight" not in before
    target = EMBEDDINGS[model_type] if adapted == "embedding" else "lm_head"
    opened = open_adapted(base, [LoRA(rank=4, targets=[target])], "generation")
    merge(opened, tmp_path / "out", batches=batches())
    after = model_entries(tmp_path / "out")
    untouched, changed = ("lm_head.weight", embedding) if adapted == "embedding" else (embedding, "lm_head.weight")
    assert after[untouched].read() == before[embedding].read()
    assert after[changed].read() != before[embedding].read()
    assert AutoConfig.from_pretrained(tmp_path / "out").tie_word_embeddings is False


@pytest.mark.parametrize("method", [Full(), QV])
def test_a_tied_embedding_that_is_not_adapted_stays_tied(tmp_path: Path, method: Method) -> None:
    base = tiny_base(tmp_path, "llama", tie_word_embeddings=True)
    merge(open_adapted(base, [method], "generation"), tmp_path / "out", batches=batches())
    assert "lm_head.weight" not in model_entries(tmp_path / "out")
    model: Any = reload(tmp_path / "out", "generation")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("method", [Full(), QV, LoRA(rank=4, targets=["model.embed_tokens"])])
@pytest.mark.parametrize("stored", ["both", "head"])
def test_a_tied_embedding_may_be_stored_under_its_other_name(tmp_path: Path, method: Method, stored: str) -> None:
    """Some writers store both names of a tied tensor, some (safetensors' save_model) the head's alone."""
    base = tiny_base(tmp_path, "llama", tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if stored == "head":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    opened = open_adapted(base, [method], "generation")
    merge(opened, tmp_path / "out", batches=batches())
    merged = logits(reload(tmp_path / "out", "generation"))
    torch.testing.assert_close(merged, logits(live_model(opened)), atol=1e-5, rtol=1e-5)


def test_an_update_is_added_to_the_trained_weight_where_both_are_trained(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    opened = open_adapted(base, [LoRA(rank=2, targets=["q"]), Full()], "classification")
    report = merge(opened, tmp_path / "out", batches=batches())
    merged = logits(reload(tmp_path / "out", "classification"))
    torch.testing.assert_close(merged, logits(live_model(opened)), atol=1e-5, rtol=1e-5)
    assert (report.copied, report.merged) == (0, 2)


# --- dtypes ---


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_another_dtype_converts_everything_once(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    opened = open_adapted(tiny_base(tmp_path, "roberta"), [QV], "classification")
    merge(opened, tmp_path / "float32", batches=batches())
    report = merge(opened, tmp_path / "out", name, batches=batches())
    exact = load_file(tmp_path / "float32" / "model.safetensors")
    rounded = load_file(tmp_path / "out" / "model.safetensors")
    assert exact.keys() == rounded.keys()
    for key, value in exact.items():
        torch.testing.assert_close(rounded[key], value.to(dtype), atol=0, rtol=0)
    assert report.dtype == name
    assert next(reload(tmp_path / "out", "classification").parameters()).dtype == dtype
    assert report.logits is not None
    assert 1e-4 < report.logits.lost_share < 0.2


def test_the_default_is_the_dtype_of_the_bases_files(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "roberta")
    rewrite(base, lambda name, value: (name, value.float() if "LayerNorm" in name else value.bfloat16()))
    opened = open_adapted(base, [QV], "classification")
    report = merge(opened, tmp_path / "out", batches=batches())
    before, after = model_entries(base), model_entries(tmp_path / "out")
    assert {key: entry.dtype for key, entry in after.items() if key in before} == {
        key: entry.dtype for key, entry in before.items() if key in after
    }
    assert {entry.dtype for key, entry in after.items() if key not in before} == {"BF16"}
    assert report.dtype == "bfloat16"
    untouched = "roberta.encoder.layer.0.output.dense.weight"
    assert before[untouched].read() == after[untouched].read()


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    rewrite(base, lambda name, value: (name, value + 1e5 if "pooler" in name else value))
    with pytest.raises(MergeError, match=r"bert\.pooler\.dense\.\w+: has values beyond the range of float16"):
        merge(open_adapted(base, [QV], "classification"), tmp_path / "out", "float16", batches=batches())
    assert not (tmp_path / "out").exists()


def test_an_adapted_tensor_of_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    opened = open_adapted(base, [QV], "generation")
    rewrite(base, lambda name, value: (name, value.to(torch.float8_e4m3fn) if "q_proj" in name else value))
    with pytest.raises(MergeError, match="q_proj.weight: is stored as F8_E4M3") as caught:
        plan_merge(opened.prepared, opened.state)
    assert len(caught.value.problems) == 2


# --- what else is written ---


def test_the_directory_serves_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    opened = open_adapted(base, [QV], "classification", skeleton=False)
    merge(opened, tmp_path / "out", batches=batches())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
        assert "_name_or_path" not in json.loads(path.read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert config["dtype"] == "float32"
    assert read_header(tmp_path / "out" / "model.safetensors")[1] == {"format": "pt"}


def test_a_tokenizer_without_padding_pads_as_the_run_did(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "gpt2")
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    merge(open_adapted(base, [QV], "classification"), tmp_path / "out", batches=batches())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.pad_token == "<|end|>"
    assert tokenizer("hé").input_ids == AutoTokenizer.from_pretrained(base)("hé").input_ids


def test_a_buffer_that_the_files_hold_is_kept(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    opened = open_adapted(base, [QV], "generation")
    opened.prepared.model.register_buffer("scores", torch.zeros(3))
    rewrite(base, lambda name, value: (name, value))
    tensors = load_file(base / "model.safetensors") | {"scores": torch.ones(3), "stray": torch.ones(3)}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    report = merge(opened, tmp_path / "out", verify="tensors")
    assert report.dropped == 1
    assert set(model_entries(tmp_path / "out")) == tensors.keys() - {"stray"}


def test_every_tensor_starts_at_a_multiple_of_its_element(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    opened = open_adapted(base, [QV], "classification")
    opened.prepared.model.register_buffer("scores", torch.zeros(3).half())
    tensors = load_file(base / "model.safetensors") | {"scores": torch.ones(3).half()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    merge(opened, tmp_path / "out", verify="tensors")
    entries = model_entries(tmp_path / "out")
    assert {"scores", "score.weight"} < entries.keys()
    assert [key for key, entry in entries.items() if entry.start % ELEMENT_BYTES[entry.dtype]] == []


def test_tensors_under_names_that_only_transformers_knows_are_kept(tmp_path: Path) -> None:
    """As with mixtures of experts, whose files hold one tensor per expert and whose models hold them stacked."""
    base = tiny_base(tmp_path, "llama")
    opened = open_adapted(base, [QV], "generation")
    rewrite(base, lambda name, value: (name.replace("mlp.up_proj", "mlp.renamed"), value))
    for name in [name for name in opened.prepared.file_names if "up_proj" in name]:
        del opened.prepared.file_names[name]
    report = merge(opened, tmp_path / "out", verify="tensors")
    assert set(model_entries(tmp_path / "out")) == set(model_entries(base))
    assert report.dropped == 0


# --- streaming ---


def test_rows_are_written_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [LoRA(rank=4, targets=["all-linear"])], "generation")
    merge(opened, tmp_path / "whole", batches=batches())
    sizes: list[int] = []
    plain = lorakit.merge.write_file

    def spy(file: Path, layout: Any, chunks: Iterator[Chunk], metadata: dict[str, str]) -> None:
        plain(file, layout, (sizes.append(len(chunk)) or chunk for chunk in chunks), metadata)  # type: ignore[func-returns-value]

    monkeypatch.setattr(lorakit.merge, "write_file", spy)
    monkeypatch.setattr(lorakit.merge, "BLOCK", 500)
    monkeypatch.setattr(lorakit.merge, "COPY", 2000)
    monkeypatch.setattr(lorakit.merge_check, "BLOCK", 700)
    merge(opened, tmp_path / "blocks", batches=batches())
    assert max(sizes) <= 4 * 500
    assert len(sizes) > 200
    whole, blocks = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "blocks"))
    for key, value in whole.items():
        torch.testing.assert_close(blocks[key], value, atol=1e-6, rtol=1e-6)


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    report = merge(opened, tmp_path / "out", verify="none", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.bytes, report.bytes)
    assert {total for _, total in seen} == {report.bytes}


def test_the_report_is_a_table_and_json(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    report = merge(opened, tmp_path / "out", batches=batches())
    assert json.loads(json.dumps(report.as_dict()))["logits"]["rows"] == 6
    table = dict(report.rows())
    assert table["tensors merged"] == "4"
    assert table["verified"] == "logits"
    assert table["share of the effect lost"] == "0.00%"
    assert "share of the effect lost" not in dict(merge(opened, tmp_path / "2", verify="none").rows())


# --- refusals: nothing is left ---


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("base-"))


@pytest.mark.parametrize("verify", ["none", "tensors", "logits"])
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_a_zero_adapter_is_refused(tmp_path: Path, model_type: str, kind: str, verify: Any) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [QV], kind, scale=0.0)
    with pytest.raises(MergeError, match="the adapter is zero"):
        merge(opened, tmp_path / "out", verify=verify, batches=batches())
    assert left(tmp_path) == []


def test_full_fine_tuning_that_changed_nothing_is_refused(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [Full()], "generation", scale=0.0)
    with pytest.raises(MergeError, match="the adapter is zero"):
        merge(opened, tmp_path / "out", verify="none")


def test_an_adapter_lost_in_rounding_is_refused(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [QV], "generation", scale=1e-12)
    with pytest.raises(MergeError, match="rounding to bfloat16 loses the whole adapter; use --dtype float32"):
        merge(opened, tmp_path / "out", "bfloat16", verify="none")
    assert left(tmp_path) == []


def test_an_adapter_mostly_lost_in_rounding_is_refused(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "llama"), [QV], "generation", scale=5e-4)
    with pytest.raises(MergeError, match=r"rounding to 16 bits loses too much of it.*\d% of the adapter's effect"):
        merge(opened, tmp_path / "out", "bfloat16", batches=batches())
    assert left(tmp_path) == []
    merge(opened, tmp_path / "out", batches=batches())


def test_a_method_can_say_why_it_cannot_be_merged(tmp_path: Path) -> None:
    class Unmergeable(LoRA):
        def unmergeable(self) -> str | None:
            return "this method has no place in the base's tensors"

    opened = open_adapted(tiny_base(tmp_path, "bert"), [Unmergeable(targets=["q"])], "classification")
    with pytest.raises(MergeError, match="no place in the base's tensors"):
        merge(opened, tmp_path / "out", batches=batches())
    assert left(tmp_path) == []


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    plain = lorakit.merge.write_file

    def full(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for number, chunk in enumerate(chunks):
            if number == after:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield chunk

    monkeypatch.setattr(lorakit.merge, "write_file", lambda f, layout, chunks, m: plain(f, layout, full(chunks), m))
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    with pytest.raises(LorakitError, match=r"out: cannot write: No space left on device \([\d,]+ MiB free"):
        merge(opened, tmp_path / "out", batches=batches())
    assert left(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    with pytest.raises(KeyboardInterrupt):
        merge(opened, tmp_path / "out", batches=batches(), progress=interrupt)
    assert left(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(lorakit.merge.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MergeError, match="KiB are needed, 1000 B are free there"):
        merge(opened, tmp_path / "deep" / "out", batches=batches())
    assert left(tmp_path) == []


def test_an_existing_directory_is_kept_and_an_empty_one_used(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    out = tmp_path / "out"
    out.mkdir()
    merge(opened, out, batches=batches())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(MergeError, match="exists already"):
        merge(opened, out, batches=batches())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MergeError, match="exists already"):
        merge(opened, tmp_path / "file", batches=batches())


# --- the proof catches what is wrong ---


def damage(out: Path, key: str, change: Any) -> None:
    file = out / "model.safetensors"
    tensors = load_file(file)
    tensors[key] = change(tensors[key])
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata={"format": "pt"})


def one_element(value: Tensor) -> Tensor:
    value[3, 5] += 0.01
    return value


@pytest.mark.parametrize("part", ["query", "key"])
def test_both_levels_catch_a_damaged_tensor(tmp_path: Path, part: str) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    merge(opened, tmp_path / "out", verify="none")
    plan = plan_merge(opened.prepared, opened.state)
    verify_tensors(plan, tmp_path / "out")
    verify_logits(opened, tmp_path / "out", batches())
    key = f"bert.encoder.layer.1.attention.self.{part}.weight"
    damage(tmp_path / "out", key, lambda value: value * 1.5)
    with pytest.raises(MergeError, match=f"{key}: the file does not hold"):
        verify_tensors(plan, tmp_path / "out")
    with pytest.raises(MergeError, match=r"does not do what the adapter does\. On the logits of 6 rows .* is lost"):
        verify_logits(opened, tmp_path / "out", batches())


@pytest.mark.parametrize("key", ["bert.encoder.layer.0.attention.self.value.weight", "bert.pooler.dense.weight"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_one_wrong_element_is_seen(tmp_path: Path, key: str, dtype: str | None) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    merge(opened, tmp_path / "out", dtype, verify="none")
    damage(tmp_path / "out", key, one_element)
    with pytest.raises(MergeError, match=key) as caught:
        verify_tensors(plan_merge(opened.prepared, opened.state, dtype), tmp_path / "out")
    assert len(caught.value.problems) == 1


def test_missing_and_extra_tensors_are_seen(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    merge(opened, tmp_path / "out", verify="none")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors["extra"] = tensors.pop("classifier.bias")
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError) as caught:
        verify_tensors(plan_merge(opened.prepared, opened.state), tmp_path / "out")
    assert len(caught.value.problems) == 2
    with pytest.raises(MergeError, match="misses 1 tensors of the merged model: classifier.bias"):
        verify_logits(opened, tmp_path / "out", batches())


def returns_base(self: LowRankEdit, block: Tensor, start: int) -> Tensor:
    return block + 1e-4 * block  # as good as the base, but not refused as an unchanged one


def forgets_scaling(self: LowRankEdit, block: Tensor, start: int) -> Tensor:
    return block + self.left[start : start + block.shape[0]] @ self.right / 2


@pytest.mark.parametrize("wrong", [returns_base, forgets_scaling])
@pytest.mark.parametrize("verify", ["tensors", "logits"])
@pytest.mark.parametrize(
    ("model_type", "targets"), [("bert", ["q"]), ("gpt2", ["q", "v"]), ("llama", ["model.embed_tokens"])]
)
def test_a_wrong_formula_is_caught_by_running_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, targets: list[str], verify: Any, wrong: Any
) -> None:
    opened = open_adapted(tiny_base(tmp_path, model_type), [LoRA(rank=4, targets=targets)], "classification")
    monkeypatch.setattr(LowRankEdit, "rows", wrong)
    with pytest.raises(MergeError, match="the merged layer does not compute what the adapted one does"):
        merge(opened, tmp_path / "out", verify=verify, batches=batches())
    monkeypatch.setattr(lorakit.merge, "verify_tensors", lambda plan, merged: None)
    if verify == "logits":
        with pytest.raises(MergeError, match="does not do what the adapter does"):
            merge(opened, tmp_path / "out", verify=verify, batches=batches())
    assert left(tmp_path) == []


def test_a_wrong_offset_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_start(self: LowRankEdit, block: Tensor, start: int) -> Tensor:
        return block + self.left[: block.shape[0]] @ self.right

    monkeypatch.setattr(LowRankEdit, "rows", forgets_start)
    monkeypatch.setattr(lorakit.merge, "BLOCK", 640)
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    with pytest.raises(MergeError, match="the file does not hold the values that were to be merged"):
        merge(opened, tmp_path / "out", verify="tensors")


def test_a_directory_that_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    opened = open_adapted(tiny_base(tmp_path, "bert"), [QV], "classification")
    merge(opened, tmp_path / "out", verify="none")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(MergeError, match="transformers cannot load the merged model"):
        verify_logits(opened, tmp_path / "out", batches())


def test_hidden_positions_do_not_count(tmp_path: Path) -> None:
    """What a model computes at padding is nobody's business."""
    opened = open_adapted(tiny_base(tmp_path, "gpt2"), [QV], "generation")
    merge(opened, tmp_path / "out", verify="none")
    check = verify_logits(opened, tmp_path / "out", batches())
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches()]
    assert verify_logits(opened, tmp_path / "out", labelled) == check, "labels are no input"
    compared = [len(found) for found in lorakit.merge_check.logits_of(live_model(opened), batches())]
    assert compared == [int(batch["attention_mask"].sum()) for batch in batches()] == [24, 24]


def test_a_new_head_is_no_effect_of_the_adapter_unless_it_is_all(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    adapted = open_adapted(base, [QV], "classification")
    with_head: Any = lorakit.merge_check._base_model(adapted)
    assert torch.equal(with_head.classifier.weight, adapted.state["classifier.weight"])
    head_alone = open_adapted(base, [], "classification")
    untrained: Any = lorakit.merge_check._base_model(head_alone)
    assert not torch.equal(untrained.classifier.weight, head_alone.state["classifier.weight"])
    report = merge(head_alone, tmp_path / "out", batches=batches())
    assert (report.merged, report.replaced, report.added) == (0, 0, 2)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tiny_bases_differ_by_seed_alone(tmp_path: Path, model_type: str) -> None:
    files = [
        (make_tiny_base(model_type, tmp_path / str(number), seed=seed) / "model.safetensors").read_bytes()
        for number, seed in enumerate((0, 0, 1))
    ]
    assert files[0] == files[1] != files[2]

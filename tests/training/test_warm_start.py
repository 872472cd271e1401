import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import history, losses, report, run, same_result, small_recipe
from torch import Tensor

from lorakit.checkpoint import open_run, read_adapter, save_adapter
from lorakit.errors import CheckpointError
from lorakit.merge import merge
from lorakit.progress import Silent
from lorakit.recipe import Recipe
from lorakit.session import probe_batches
from lorakit.surgery import trainable_state
from lorakit.tiny import make_tiny_base
from lorakit.training import run as run_module
from lorakit.training.loop import Step, optimise
from lorakit.training.setup import set_up
from lorakit.training.warm_start import read_source, warm_start

Tiny = Callable[[str], Path]


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def source(folder: Path, base: Path, **sections: Any) -> Path:
    """A finished run with two classes."""
    run(small_recipe(folder / "source", base, **sections), folder / "source" / "run")
    return folder / "source" / "run"


def target(folder: Path, base: Path, origin: Path | str, kind: str = "regression", **sections: Any) -> Recipe:
    """A recipe that starts from `origin`; by default with one output instead of two classes."""
    init_from = {"run": str(origin), "head": sections.pop("head", "drop")}
    train = {"init_from": init_from, **sections.pop("train", {})}
    return small_recipe(folder / "target", base, kind, train=train, **sections)


def started(recipe: Recipe, out: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any], list[str]]:
    """What is trained at step 0 without and with the other run, and what was recorded and said."""
    told = Told()
    found = read_source(recipe, out, resume=False)
    assert found is not None
    prepared = set_up(recipe, out, Silent()).prepared
    fresh = trainable_state(prepared.model)
    record = warm_start(found, prepared, told)
    return fresh, trainable_state(prepared.model), record, told.lines


def same(names: list[str], one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


HEADS = {
    "roberta": (["classifier.dense"], ["classifier.out_proj"]),
    "deberta-v2": (["pooler.dense"], ["classifier"]),
    "gpt2": ([], ["score"]),
}
"""Modules of the head whose shapes do not depend on the task, and those whose shapes do."""


@pytest.mark.parametrize("rule", ["drop", "keep_matching"])
@pytest.mark.parametrize("model_type", HEADS)
def test_what_the_first_step_starts_with(tmp_path: Path, tiny: Tiny, model_type: str, rule: str) -> None:
    origin = source(tmp_path, tiny(model_type))
    theirs = load_file(origin / "adapter.safetensors")
    recipe = target(tmp_path, tiny(model_type), origin, head=rule, train={"seed": 7})
    fresh, now, record, told = started(recipe, tmp_path / "run")

    pairs = [name for name in now if ".update." in name]
    assert pairs and same(pairs, now, theirs)
    assert not any(torch.equal(now[name], fresh[name]) for name in pairs)

    fits, other = HEADS[model_type]
    kept = fits if rule == "keep_matching" else []
    head = {module: [name for name in now if name.rpartition(".")[0] == module] for module in fits + other}
    assert {name for names in head.values() for name in names} | set(pairs) == set(now)
    for module, names in head.items():
        assert same(names, now, theirs if module in kept else fresh), module
    assert record["head"] == {module: "kept" if module in kept else "new" for module in fits + other}
    assert record["run"] == str(origin)
    assert record["adapter_sha256"] == hashlib.sha256((origin / "adapter.safetensors").read_bytes()).hexdigest()
    assert all(f"{module} {how}" in told[0] for module, how in record["head"].items())


def test_a_head_of_the_same_shape_is_kept_whole_or_new_whole(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("roberta"))
    theirs = load_file(origin / "adapter.safetensors")
    for rule, expected in (("keep_matching", True), ("drop", False)):
        _, now, _, _ = started(target(tmp_path, tiny("roberta"), origin, "classification", head=rule), tmp_path / "run")
        weights = [name for name in now if name.startswith("classifier.") and name.endswith("weight")]
        assert len(weights) == 2
        assert [torch.equal(now[name], theirs[name]) for name in weights] == [expected, expected]


def test_generation_has_no_head(tmp_path: Path, tiny: Tiny) -> None:
    run(small_recipe(tmp_path / "source", tiny("gpt2"), "completion"), tmp_path / "source/run")
    recipe = target(tmp_path, tiny("gpt2"), tmp_path / "source/run", "completion")
    _, now, record, told = started(recipe, tmp_path / "run")
    assert same(list(now), now, load_file(tmp_path / "source/run/adapter.safetensors"))
    assert record["head"] == {}
    assert told == [f"starts from {tmp_path}/source/run"]


def test_a_run_that_starts_from_another(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    recipe = target(tmp_path, tiny("bert"), origin)
    run(recipe, tmp_path / "run")
    alone = recipe.model_copy(update={"train": recipe.train.model_copy(update={"init_from": None})})
    run(alone, tmp_path / "alone")
    assert losses(tmp_path / "run")[0] != losses(tmp_path / "alone")[0]
    assert report(tmp_path / "alone")["init_from"] is None
    found = report(tmp_path / "run")["init_from"]
    assert found["run"] == str(origin) and found["head"] == {"classifier": "new"}
    assert f"{origin} (adapter {found['adapter_sha256'][:12]})" in (tmp_path / "run/report.md").read_text()
    # The base stayed as it was, so the run is merged from it, without the other run.
    shutil.rmtree(origin)
    opened = open_run(tmp_path / "run", skeleton=True)
    merge(opened, tmp_path / "merged", batches=probe_batches(opened))
    assert (tmp_path / "merged/model.safetensors").is_file()


def test_a_resumed_run_does_not_start_again(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = source(tmp_path, tiny("bert"))
    recipe = target(tmp_path, tiny("bert"), origin)
    run(recipe, tmp_path / "whole")

    def dying(*arguments: Any) -> Iterator[Step]:
        for step in optimise(*arguments):
            if step.number == 5:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "optimise", dying)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-3"]
    shutil.rmtree(origin)
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "whole", tmp_path / "run")
    assert report(tmp_path / "run")["init_from"] == report(tmp_path / "whole")["init_from"]


def test_resume_without_a_checkpoint_starts_from_the_other_run(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    recipe = target(tmp_path, tiny("bert"), origin)
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "run", resume=True)
    same_result(tmp_path / "whole", tmp_path / "run")


# --- what is wrong with the other run


def refused(recipe: Recipe, out: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        run(recipe, out)
    assert all(problem.startswith("train.init_from.run: ") for problem in raised.value.problems)
    return str(raised.value)


def test_a_missing_run_says_how_to_make_it(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = Path("nowhere")  # nothing is loaded before the run is looked for
    message = refused(target(tmp_path, base, "runs/roberta_mnli"), tmp_path / "run")
    assert message.endswith("no such directory; make it first: lorakit train RECIPE --out runs/roberta_mnli")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/roberta_mnli.yaml").touch()
    message = refused(target(tmp_path, base, "runs/roberta_mnli"), tmp_path / "run")
    assert message.endswith("make it first: lorakit train recipes/roberta_mnli.yaml")
    message = refused(target(tmp_path, base, "elsewhere/roberta_mnli"), tmp_path / "run")
    assert message.endswith("lorakit train recipes/roberta_mnli.yaml --out elsewhere/roberta_mnli")


def test_home_is_found(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    source(tmp_path, tiny("bert"))
    assert read_source(target(tmp_path, tiny("bert"), "~/source/run"), tmp_path / "run", resume=False) is not None


def test_what_is_no_finished_run(tmp_path: Path, tiny: Tiny) -> None:
    recipe = target(tmp_path, tiny("bert"), tmp_path / "source")
    (tmp_path / "source").mkdir()
    assert "not a run directory" in refused(recipe, tmp_path / "run")
    (tmp_path / "source/recipe.yaml").touch()
    assert "has not finished" in refused(recipe, tmp_path / "run")
    (tmp_path / "source/adapter.safetensors").write_bytes(b"torn")
    assert "adapter.safetensors" in refused(recipe, tmp_path / "run")


def test_a_run_cannot_start_from_itself(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    before = (origin / "adapter.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="is the directory of this run itself; give another --out"):
        run(target(tmp_path, tiny("bert"), origin), origin, overwrite=True)
    assert (origin / "adapter.safetensors").read_bytes() == before


def test_another_base(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    message = refused(target(tmp_path, tiny("roberta"), origin), tmp_path / "run")
    assert message.endswith(f"{origin} was trained on the base bert, and this recipe has roberta")


def test_other_weights(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    other = make_tiny_base("bert", tmp_path / "bert", seed=1)
    assert refused(target(tmp_path, other, origin), tmp_path / "run").endswith("other weights of bert than are here")


def test_another_revision(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    file = origin / "adapter.safetensors"
    state, provenance = read_adapter(file)
    fields = {**vars(provenance), "revision": "abc"}
    save_adapter(file, state, type(provenance)(**fields))
    message = refused(target(tmp_path, tiny("bert"), origin), tmp_path / "run")
    assert message.endswith("on revision abc of bert, and this is None; set model.revision=abc")


def test_another_method(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    method = {"name": "full", "rank": "absent", "alpha": "absent"}
    message = refused(target(tmp_path, tiny("bert"), origin, method=method), tmp_path / "run")
    assert "was trained by the method lora, and this recipe has full" in message


def test_every_difference_of_the_method_is_named_and_the_old_run_stays(tmp_path: Path, tiny: Tiny) -> None:
    origin = source(tmp_path, tiny("bert"))
    run(small_recipe(tmp_path / "old", tiny("bert")), tmp_path / "run")
    recipe = target(tmp_path, tiny("bert"), origin, method={"rank": 4, "targets": ["q", "k"]})
    with pytest.raises(CheckpointError) as raised:
        run(recipe, tmp_path / "run", overwrite=True)
    rank, targets = raised.value.problems
    assert rank.endswith("was trained with method.rank 2, and this recipe has 4")
    assert targets.endswith('with method.targets ["q", "v"], and this recipe has ["q", "k"]')
    assert (tmp_path / "run/adapter.safetensors").is_file()


def test_a_key_that_the_adapter_does_not_know_has_its_default(tmp_path: Path, tiny: Tiny) -> None:
    """An adapter of an older version says nothing about a key that came later."""
    origin = source(tmp_path, tiny("bert"))
    file = origin / "adapter.safetensors"
    state, provenance = read_adapter(file)
    methods = [{key: value for key, value in provenance.methods[0].items() if key != "rslora"}]
    save_adapter(file, state, type(provenance)(**{**vars(provenance), "methods": methods}))
    run(target(tmp_path, tiny("bert"), origin), tmp_path / "run")
    assert history(tmp_path / "run", "final")
    assert json.loads((tmp_path / "run/report.json").read_text())["init_from"]["run"] == str(origin)

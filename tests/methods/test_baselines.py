"""Methods that train parts of a model or hang something into it, in whole runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import logits, prepared, recipe_file, run, same_result

import lorakit.training.run as run_module
from lorakit.checkpoint import open_run
from lorakit.cli import main
from lorakit.errors import RecipeError
from lorakit.model import Prepared
from lorakit.recipe import load
from lorakit.surgery import canonical, trainable_parameters
from lorakit.training.loop import Step, optimise

METHODS: dict[str, dict[str, Any]] = {
    "top_layers": {"name": "top_layers", "layers": 1},
    "bitfit": {"name": "bitfit"},
    "houlsby": {"name": "adapter", "variant": "houlsby", "bottleneck": 16},
    "lin": {"name": "adapter", "variant": "lin", "bottleneck": 16, "drop_first": 1},
    "pfeiffer": {"name": "adapter", "variant": "pfeiffer", "bottleneck": 16},
}
MODELS = {"bert": "classification", "roberta": "classification", "deberta-v2": "classification"}
MODELS |= {"gpt2": "completion", "llama": "completion"}
REFUSED = {("bitfit", "llama"), ("pfeiffer", "gpt2"), ("pfeiffer", "llama")}
CASES = [(method, model) for method in METHODS for model in MODELS if (method, model) not in REFUSED]
IN_PLACE = [case for case in CASES if case[0] in ("top_layers", "bitfit")]
"""Methods that add nothing to the base."""

Tiny = Callable[[str], Path]


def recipe_of(folder: Path, base: Path, method: str, model: str) -> Path:
    whole = {"rank": "absent", "alpha": "absent", **METHODS[method]}
    return recipe_file(folder, base, MODELS[model], method=whole, train={"select": "last", "save_every": 2})


@dataclass
class Case:
    """A finished run."""

    method: str
    model: str
    recipe: Path
    out: Path
    trained: Prepared


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Callable[[tuple[str, str]], Case]:
    """(method, model) → its run, made once."""
    made: dict[tuple[str, str], Case] = {}

    def case(key: tuple[str, str]) -> Case:
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            recipe = recipe_of(folder, tiny(key[1]), *key)
            made[key] = Case(*key, recipe, folder / "run", run(load(recipe), folder / "run").prepared)
        return made[key]

    return case


Finished = Callable[[tuple[str, str]], Case]
every_case = pytest.mark.parametrize("key", CASES, ids="-".join)


@every_case
def test_step_0(key: tuple[str, str], tmp_path: Path, tiny: Tiny) -> None:
    """The base bit for bit, where nothing is added to it; else close to it. Every trained tensor gets a gradient."""
    recipe = recipe_of(tmp_path, tiny(key[1]), *key)
    adapted = prepared(recipe, methods=True)
    first, base = logits(adapted.model), logits(prepared(recipe, methods=False).model)
    if key in IN_PLACE:
        assert torch.equal(first, base)
    else:
        assert 0 < (first - base).norm() < 0.5 * base.norm()
    ids = torch.randint(10, 200, (4, 12), generator=torch.Generator().manual_seed(3))
    types = {"token_type_ids": torch.tensor([[0] * 6 + [1] * 6] * 4)} if key[1] == "bert" else {}
    adapted.model(input_ids=ids, **types).logits.square().sum().backward()
    for name, parameter in trainable_parameters(adapted.model).items():
        assert parameter.grad is not None, name
        # a key's bias adds the same to all of a query's scores, which the softmax takes away again
        assert parameter.grad.abs().max() > 0 or name.endswith(("key.bias", "key_proj.bias")), name


@every_case
def test_training_changes_what_is_trained_and_nothing_else(key: tuple[str, str], finished: Finished) -> None:
    case = finished(key)
    before = dict(prepared(case.recipe, methods=False).model.named_parameters())
    start = trainable_parameters(prepared(case.recipe, methods=True).model)
    trained = trainable_parameters(case.trained.model)
    assert list(start) == list(trained)
    frozen = {canonical(n): p for n, p in case.trained.model.named_parameters() if not p.requires_grad}
    assert frozen and frozen.keys() == before.keys() - trained.keys()
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())
    same = [name for name, parameter in trained.items() if torch.equal(parameter, start[name])]
    assert not same
    saved = load_file(case.out / "adapter.safetensors")
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], parameter) for name, parameter in trained.items())


@every_case
def test_saved_and_loaded(key: tuple[str, str], finished: Finished) -> None:
    case = finished(key)
    opened = logits(open_run(case.out).prepared.model)
    assert torch.equal(opened, logits(case.trained.model))
    base = logits(prepared(case.recipe, methods=False).model)
    assert not torch.allclose(opened, base, rtol=1e-2, atol=1e-3), "nothing was learned, so nothing was compared"


class Died(BaseException):
    """The process is gone: nothing in lorakit catches this."""


@every_case
def test_resumed_is_uninterrupted(
    key: tuple[str, str], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = finished(key)

    def dying(*args: Any) -> Iterator[Step]:
        for step in optimise(*args):
            yield step
            if step.number == 3:
                raise Died

    monkeypatch.setattr(run_module, "optimise", dying)
    with pytest.raises(Died):
        run(load(case.recipe), tmp_path / "run")
    monkeypatch.undo()
    run(load(case.recipe), tmp_path / "run", resume=True)
    same_result(case.out, tmp_path / "run")


@every_case
def test_merge(key: tuple[str, str], finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    case = finished(key)
    with pytest.raises(SystemExit) as done:
        main(["merge", str(case.out), "--out", str(tmp_path / "merged")])
    if key not in IN_PLACE:
        assert done.value.code and not (tmp_path / "merged").exists()
        assert f"adapter ({case.method}) cannot be merged: its layers have a nonlinearity" in capsys.readouterr().err
        return
    assert not done.value.code, capsys.readouterr().err
    kind = AutoModelForCausalLM if MODELS[case.model] == "completion" else AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(merged), logits(case.trained.model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", sorted(REFUSED), ids="-".join)
def test_refused(key: tuple[str, str], tmp_path: Path, tiny: Tiny) -> None:
    recipe = recipe_of(tmp_path, tiny(key[1]), *key)
    with pytest.raises(RecipeError, match=rf"{key[0]} .*{key[1]} model .*; use "):
        run(load(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import recipe_file, small_recipe

from lorakit.cli import main
from lorakit.data.slots import PLACEHOLDER, Slots
from lorakit.errors import RecipeError
from lorakit.latency import BASE, Deployed, Grid, _with_places, deploy, measure, prepare_base, table
from lorakit.layers.adapted import Adapted
from lorakit.model import Prepared
from lorakit.progress import Silent
from lorakit.trials.settings import read, recipe_for
from lorakit.variants import variants

Tiny = Callable[[str], Path]
CASES = [("bert", "classification"), ("gpt2", "completion"), ("llama", "completion")]


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def recipe(request: pytest.FixtureRequest, tmp_path: Path, tiny: Tiny) -> Path:
    model_type, kind = request.param
    return recipe_file(tmp_path, tiny(model_type), kind)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(10, 200, (2, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def test_a_grid_has_a_number_in_each_cell(recipe: Path) -> None:
    given = read(recipe, [])
    base = prepare_base(given.recipe)
    names = ["lora", "full", "houlsby", "lin", "preembed", "prelayer"]
    deployed = [one for name in names for one in deploy(base, name, recipe_for(given, name, 0).method, both=True)]
    assert [one.label for one in deployed] == ["lora (merged)", "lora (unmerged)", *names[1:]]
    cells = measure(base, deployed, Grid([1, 3], [8, 12], trials=2), Silent())
    assert [(cell.batch, cell.length) for cell in cells if cell.label == BASE] == [(1, 8), (3, 8), (1, 12), (3, 12)]
    assert len(cells) == 4 * (1 + len(deployed))
    assert all(cell.milliseconds > 0 for cell in cells)
    assert all((cell.over_base == 0) == (cell.label == BASE) for cell in cells)
    header, rows = table(cells)
    assert header == ["ms per forward pass", "1 × 8", "3 × 8", "1 × 12", "3 × 12"]
    assert [row[0] for row in rows] == [BASE, *(one.label for one in deployed)]
    assert "%" not in "".join(rows[0])
    assert all(cell.endswith(" %)") for cell in rows[1][1:])


def test_variants_share_the_base_and_leave_it_as_it_was(recipe: Path) -> None:
    given = read(recipe, [])
    base = prepare_base(given.recipe)
    before = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    places = {id(parameter): parameter.data_ptr() for parameter in base.model.parameters()}
    for name in variants():
        if (name == "pfeiffer" and given.decoder) or (name == "bitfit" and "llama" in str(given.recipe.model.base)):
            continue  # it has no such norm, no biases
        for one in deploy(base, name, recipe_for(given, name, 0).method, both=True):
            shared = sum(id(parameter) in places for parameter in one.model.parameters())
            assert shared > 0 if "(merged)" in one.label else shared == len(places), one.label
    assert {id(p): p.data_ptr() for p in base.model.parameters()} == places
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert not parameter.requires_grad
    assert not any(isinstance(module, Adapted) for module in base.model.modules())


@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_a_merged_model_has_the_base_s_modules_and_the_adapter_s_logits(
    recipe: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorakit import latency

    given = read(recipe, ["method.targets=[q, v]"])
    base = prepare_base(given.recipe)
    merge = latency._merged

    def after_training(model: torch.nn.Module) -> torch.nn.Module:
        for path, parameter in model.named_parameters():
            if path.endswith(".B"):
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(path)))
        return merge(model)

    monkeypatch.setattr(latency, "_merged", after_training)
    merged, unmerged = deploy(base, name, recipe_for(given, name, 0).method, both=True)
    assert {path for path, _ in merged.model.named_modules()} == {path for path, _ in base.model.named_modules()}
    torch.testing.assert_close(logits(merged.model), logits(unmerged.model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(base.model), logits(merged.model), rtol=1e-3, atol=5e-5)


class _Clocked(torch.nn.Module):
    """Notes the order of calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, **inputs: torch.Tensor) -> None:
        self.calls.append(self.name)


def test_trials_are_interleaved_and_begin_in_turn(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    base = prepare_base(small_recipe(tmp_path, tiny("bert")))
    calls: list[str] = []
    handle = base.model.register_forward_pre_hook(lambda *_: calls.append("base"))
    measure(
        base, [Deployed("x", _Clocked("x", calls)), Deployed("y", _Clocked("y", calls))], Grid([1], [4], 3), Silent()
    )
    handle.remove()
    orders = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert orders[-3:] == [["base", "x", "y"], ["x", "y", "base"], ["y", "base", "x"]]
    assert len(orders) == 5, "two rounds before are not counted"


def test_prefixes_get_their_places() -> None:
    placed = _with_places(torch.tensor([[5, 6, 7]]), Slots(prefix=2, infix=1))["input_ids"]
    assert placed.tolist() == [[5, PLACEHOLDER, PLACEHOLDER + 1, 6, PLACEHOLDER + 2, 7]]
    assert _with_places(torch.tensor([[5]]), Slots())["input_ids"].tolist() == [[5]]


def test_too_long_for_the_base(tmp_path: Path, tiny: Tiny) -> None:
    base: Prepared = prepare_base(small_recipe(tmp_path, tiny("bert")))
    most = base.max_tokens
    assert most is not None
    with pytest.raises(RecipeError, match=f"--length: {most + 1} tokens exceed the {most} positions"):
        measure(base, [], Grid([1], [most + 1], 1), Silent())
    with pytest.raises(RecipeError, match="with the 5 places of a prefix"):
        measure(base, [Deployed("p", base.model, Slots(5))], Grid([1], [most], 1), Silent())


@pytest.mark.parametrize("json_", [False, True])
def test_the_command(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], json_: bool) -> None:
    file = recipe_file(tmp_path, tiny("bert"))
    words = ["latency", str(file), "--batch", "1,2", "--length", "8", "--trials", "1"]
    with pytest.raises(SystemExit) as done:
        main([*words, *(["--json"] if json_ else [])])
    out, err = capsys.readouterr()
    assert not done.value.code, err
    labels = [BASE, "lora (merged)", "lora (unmerged)", "houlsby", "lin"]
    if json_:
        found = json.loads(out)
        assert [cell["label"] for cell in found["cells"]] == labels * 2
    else:
        assert all(any(line.startswith(label) for line in out.splitlines()) for label in labels)


@pytest.mark.parametrize("json_", [False, True])
def test_a_method_that_does_not_fit_is_left_out_and_said(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], json_: bool
) -> None:
    file = recipe_file(tmp_path, tiny("llama"), "completion")
    words = ["latency", str(file), "--methods", "bitfit,lora", "--batch", "1", "--length", "8", "--trials", "1"]
    with pytest.raises(SystemExit) as done:
        main([*words, *(["--json"] if json_ else [])])
    out, err = capsys.readouterr()
    assert done.value.code == 1
    reason = "method: bitfit trains biases, and this llama model has none; use lora, or adapter"
    assert err == f"error: bitfit: {reason}\n"
    if json_:
        assert json.loads(out)["failed"] == {"bitfit": reason}
        assert [cell["label"] for cell in json.loads(out)["cells"]] == [BASE, "lora (merged)", "lora (unmerged)"]
    else:
        assert "lora (unmerged)" in out and "bitfit" not in out


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--batch", "1,x", "--batch: got '1,x'"),
        ("--length", "0", "--length: got '0'"),
        ("--methods", "lin,hulsby", "houlsby"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str], option: str, value: str, expected: str
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["latency", str(recipe_file(tmp_path, tiny("bert"))), option, value])
    assert done.value.code == 2
    assert expected in capsys.readouterr().err

"""lorakit → PEFT → lorakit and lorakit → loralib → lorakit, over architectures, targets and options."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from adapted import live_model, logits, open_adapted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorakit.checkpoint import Opened, open_run
from lorakit.export import export
from lorakit.export.card import CARD
from lorakit.export.loralib import FILE
from lorakit.imports import import_adapter
from lorakit.layers.low_rank import LoRALayer
from lorakit.merge_plan import adapted_layers
from lorakit.methods import LoRA

FUSED = ("gpt2", "modernbert", "phi3", "gpt_neox")
MLP = {"bert": "up", "gpt2": "up", "llama": "gate", "modernbert": "down", "phi3": "down", "gpt_neox": "up"}
IN_ORDER = ("modernbert", "gpt2")
"""Of the fused ones, those whose matrices are equal parts, one after the other, as loralib's `MergedLinear` needs."""
KINDS = {"bert": "classification", "modernbert": "classification"}


def methods(model_type: str) -> st.SearchStrategy[LoRA]:
    """LoRA sections whose patterns all match."""
    names = ["q", "k", "v", "o", MLP[model_type]]
    targets = st.one_of(st.just(["all-linear"]), st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))

    def options(targets: list[str]) -> st.SearchStrategy[LoRA]:
        named = names if targets == ["all-linear"] else targets
        fields = {
            "targets": st.just(targets),
            "rank": st.integers(1, 6),
            "alpha": st.sampled_from([0.5, 1, 4, 6.0, 11]),
            "rslora": st.booleans(),
            "dropout": st.sampled_from([0.0, 0.25]),
            "bias": st.sampled_from(["none", "lora_only", "all"]) if model_type == "bert" else st.just("none"),
            "ranks": st.dictionaries(st.sampled_from([*named, "*.1.*"]), st.integers(1, 5), max_size=2),
            "alphas": st.dictionaries(st.sampled_from([*named, "*.0.*"]), st.sampled_from([2, 3.5]), max_size=2),
        }
        return st.builds(LoRA, **fields)  # type: ignore[arg-type]

    return targets.flatmap(options)


cases = st.sampled_from(sorted(MLP)).flatmap(lambda model_type: st.tuples(st.just(model_type), methods(model_type)))
PROPERTY = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def deltas(opened: Opened) -> dict[str, Tensor]:
    """ΔW of every adapted module."""
    layers = adapted_layers(opened.prepared.model)
    factors = {path: layer.update.factors() for path, layer in layers.items() if isinstance(layer, LoRALayer)}
    return {path: left.double() @ right.double() for path, (left, right) in factors.items()}


def same(before: Opened, run: Path, whole: bool) -> None:
    """Fails unless an imported run is the adapter that it came from; to the bit where its tensors kept their form."""
    after = open_run(run)
    found, there = deltas(after), deltas(before)
    assert found.keys() == there.keys()
    for path, delta in there.items():
        torch.testing.assert_close(found[path], delta, atol=1e-7, rtol=1e-5)
    names = [name for name in before.state if whole or ".update." not in name]
    assert all(torch.equal(after.state[name], before.state[name]) for name in names)
    torch.testing.assert_close(logits(after.prepared.model), logits(live_model(before)), atol=2e-5, rtol=1e-5)


@PROPERTY
@given(cases)
def test_through_peft(tiny: Callable[[str], Path], case: tuple[str, LoRA]) -> None:
    model_type, method = case
    before = open_adapted(tiny(model_type), [method], KINDS.get(model_type, "generation"))
    with TemporaryDirectory() as scratch:
        export(before, "peft", Path(scratch) / "out")
        report = import_adapter(Path(scratch) / "out", Path(scratch) / "run", str(tiny(model_type)))
        fused = any(".update.A" not in name and name.endswith(".A") for name in before.state)
        same(before, Path(scratch) / "run", whole=not fused)
        assert report.method.rslora == method.rslora
        assert (report.method.bias, report.method.dropout) == (method.bias, method.dropout)


@PROPERTY
@given(cases.filter(lambda case: case[0] not in FUSED or case[0] in IN_ORDER))
def test_through_loralib(tiny: Callable[[str], Path], case: tuple[str, LoRA]) -> None:
    model_type, method = case
    before = open_adapted(tiny(model_type), [method], KINDS.get(model_type, "generation"))
    with TemporaryDirectory() as scratch:
        export(before, "loralib", Path(scratch) / "out")
        alpha = float((Path(scratch) / "out" / CARD).read_text().split("`lora_alpha=")[1].split("`")[0])
        # the file does not say which matrices of a fused projection were adapted
        recipe = (
            written(Path(scratch) / "recipe.yaml", tiny(model_type), before, method) if model_type in FUSED else None
        )
        import_adapter(Path(scratch) / "out" / FILE, Path(scratch) / "run", str(tiny(model_type)), alpha, recipe)
        same(before, Path(scratch) / "run", whole=False)


def written(file: Path, base: Path, before: Opened, method: LoRA) -> Path:
    """A recipe with the run's targets and a task with its head; the rows are never read."""
    labels = before.recipe.task.labels
    task = {"kind": "classification", "labels": list(labels)} if labels else {"kind": "completion"}
    sections = {
        "model": {"base": str(base)},
        "method": {"name": "lora", "targets": method.targets},
        "task": {"name": "custom", "train": "train.jsonl", **task},
        "train": {"epochs": 1, "batch_size": 1, "lr": 0.1},
    }
    file.write_text(json.dumps(sections))
    return file

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small_recipe
from torch import nn

from lorakit.checkpoint import head_of
from lorakit.data.collate import Batch
from lorakit.forecast import (
    KERNEL,
    LIBRARIES,
    SMALL_KERNEL,
    TOKEN,
    WIDE,
    Batches,
    forecast,
    loading_phase,
    training_peak,
)
from lorakit.generate import generate
from lorakit.ledger import Ledger, fake_copy
from lorakit.lengths import Shape
from lorakit.memory import Simulation
from lorakit.model import prepare
from lorakit.objective import objective
from lorakit.outline import Outline, outline
from lorakit.recipe import Recipe
from lorakit.training.optim import build_optimizer

Tiny = Callable[[str], Path]


def simulation(recipe: Recipe, precision: str = "float32", on_cuda: bool = False) -> tuple[Simulation, Outline]:
    made = outline(recipe, on_cuda)
    return Simulation(made.model, recipe, precision, partial(build_optimizer, recipe.train), on_cuda), made


class OnData(Ledger):  # type: ignore[misc]
    """The same ledger beside real kernels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, list | tuple) else (out,):
            if isinstance(made, torch.Tensor):
                self.enter(made, self.part)
        return out


def on_real_tensors(recipe: Recipe, made: Outline, shape: Shape) -> int:
    """The peak of a forward and a backward pass with data, above the weights."""
    assert made.prepared is not None
    model = prepare(recipe.model, recipe.method, head_of(recipe), 0).model
    if recipe.train.gradient_checkpointing:
        from lorakit.memory import checkpoint_gradients

        checkpoint_gradients(model)
    model.train()
    loss_of = objective(recipe.task.kind, model)
    ids = torch.full((shape.rows, shape.width), 7)
    mask = torch.ones_like(ids)
    for row, tokens in enumerate(np.array_split(range(shape.real), shape.rows)):
        mask[row, len(tokens) :] = 0
    labels = torch.zeros(shape.rows, dtype=torch.long)
    if recipe.task.kind == "generation":
        labels = torch.full_like(ids, -100)
        labels[:, 1 : 1 + shape.targets // shape.rows] = 5
    ledger = OnData()
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.enter(tensor, "weights")
    ledger.part = "passing"
    with ledger, ledger.peak_of() as found:
        loss, _ = loss_of(model, Batch.of({"input_ids": ids, "attention_mask": mask}, labels))
        loss.backward()
    return sum(size for part, size in found.items() if part == "passing")


@pytest.mark.parametrize("padding", [1, 24])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("model_type", "kind"), [("bert", "classification"), ("llama", "completion")])
def test_fake_tensors_hold_what_real_ones_do(
    tiny: Tiny, tmp_path: Path, model_type: str, kind: str, checkpointing: bool, padding: int
) -> None:
    recipe = small_recipe(tmp_path, tiny(model_type), kind, train={"gradient_checkpointing": checkpointing})
    found, made = simulation(recipe)
    shape = Shape(4, 32, 40 if kind == "completion" else 4, padding)
    predicted = found.train(shape, accumulating=False)
    passing = sum(predicted.get(part, 0) for part in ("activations", "logits", "backward", "gradients"))
    assert passing == pytest.approx(on_real_tensors(recipe, made, shape), rel=0.02)


def test_the_constant_parts_are_counts_of_parameters(tiny: Tiny, tmp_path: Path) -> None:
    found, made = simulation(small_recipe(tmp_path, tiny("bert")))
    sizes = {trained: 0 for trained in (True, False)}
    for parameter in made.model.parameters():
        sizes[parameter.requires_grad] += 4 * parameter.numel()
    parts = found.train(Shape(2, 8, 2), accumulating=True)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in made.model.buffers())
    assert parts["trained"] == parts["gradients"] == sizes[True]
    assert parts["weights"] == sizes[False] + buffers
    assert parts["optimiser"] - found.optimizer_bytes < 8 * len(found.trained)  # and a counter each
    assert found.optimizer_bytes == 2 * sizes[True]


def test_frozen_weights_in_bfloat16_take_half(tiny: Tiny, tmp_path: Path) -> None:
    wide, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    narrow, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion", model={"dtype": "bfloat16"}), "bfloat16")
    shape = Shape(2, 16, 8)
    assert narrow.train(shape, False)["weights"] == pytest.approx(wide.train(shape, False)["weights"] / 2, rel=0.01)
    assert narrow.train(shape, False)["activations"] < wide.train(shape, False)["activations"]


def test_checkpointing_keeps_less(tiny: Tiny, tmp_path: Path) -> None:
    shape = Shape(8, 64, 64)
    plain, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    less, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion", train={"gradient_checkpointing": True}))
    totals = [sum(one.train(shape, False).values()) for one in (plain, less)]
    assert totals[1] < 0.9 * totals[0]


def test_memory_is_a_constant_and_so_much_per_row(tiny: Tiny, tmp_path: Path) -> None:
    """What `fit` relies on."""
    found, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    one, two, nine = (sum(found.train(Shape(n, 32, 8 * n), True).values()) for n in (1, 2, 9))
    assert nine == pytest.approx(one + 8 * (two - one), rel=0.001)


def test_evaluation_keeps_nothing_for_a_backward_pass(tiny: Tiny, tmp_path: Path) -> None:
    found, _ = simulation(small_recipe(tmp_path, tiny("bert")))
    shape = Shape(8, 64, 8)
    assert found.evaluate(shape)["activations"] < 0.6 * found.train(shape, False)["activations"]
    assert "gradients" not in found.evaluate(shape)


def test_generation_holds_the_cache(tiny: Tiny, tmp_path: Path) -> None:
    found, made = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    config = made.model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert found.generate(4, 64)["activations"] > 4 * 64 * cache


@pytest.mark.parametrize("beams", [1, 4])
def test_generation_needs_no_more_than_foreseen(tiny: Tiny, tmp_path: Path, beams: int) -> None:
    """Every beam has its part of the cache; prompts and new tokens are counted as if they were read at once."""
    recipe = small_recipe(tmp_path, tiny("llama"), "completion", generate={"max_new_tokens": 40, "beams": beams})
    found, made = simulation(recipe)
    assert made.prepared is not None and recipe.generate is not None
    model = prepare(recipe.model, recipe.method, head_of(recipe), 0).model
    ledger = OnData()
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.enter(tensor, "weights")
    ledger.part = "passing"
    with ledger, ledger.peak_of() as peak:
        generate(model, made.prepared.tokenizer, [[7] * 24] * 8, recipe.generate)
    foreseen = found.generate(8 * beams, 24 + 40)["activations"]
    assert 0.1 * foreseen < peak["passing"] < foreseen


def test_cuda_attention_with_dropout_keeps_no_scores(tiny: Tiny, tmp_path: Path) -> None:
    """BERT's attention has dropout: a CPU then materialises the scores, (rows, heads, width, width)."""
    recipe = small_recipe(tmp_path, tiny("bert"))
    here, _ = simulation(recipe)
    there, made = simulation(recipe, on_cuda=True)
    shape = Shape(4, 128, 4)
    scores = 4 * 4 * made.model.config.num_attention_heads * 128 * 128
    assert here.train(shape, False)["activations"] - there.train(shape, False)["activations"] > scores


def test_a_simulation_leaves_the_model_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    found, made = simulation(small_recipe(tmp_path, tiny("bert")))
    before = {name: parameter for name, parameter in made.model.named_parameters()}
    found.train(Shape(2, 8, 2), True)
    assert all(parameter is before[name] for name, parameter in made.model.named_parameters())
    assert all(parameter.is_meta and parameter.grad is None for parameter in before.values())


def test_the_ledger_knows_what_is_gone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    ledger = Ledger()
    ledger.part = "activations"
    with FakeTensorMode(), ledger, ledger.peak_of() as found:
        first = torch.zeros(1000)
        view = first[10:]
        del first
        assert ledger.live == {"activations": 4000}  # the view keeps the storage
        del view
        assert ledger.live.total() == 0
        torch.zeros(500)
    assert found == {"activations": 4000}


def test_tied_weights_are_copied_as_tied(tiny: Tiny) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    copied = fake_copy(model, FakeTensorMode())
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not model[0].weight


def test_kernels_of_16_bits_grow_with_the_sizes_of_batches(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"), "bfloat16")
    matrices = len({parameter.shape for parameter in found.model.parameters() if parameter.ndim == 2})

    def kept(count: int, known: bool = True, of: Simulation = found) -> int:
        batches = Batches([Shape(4, 8 + n, 4) for n in range(count)], False, [Shape(4, 8, 4)], known=known)
        phases = {phase.name: phase.parts.get("kernels", 0) for phase in forecast(of, batches)}
        assert phases["evaluation"] == phases["training"] and not phases["saving"]
        return phases["training"]

    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    assert kept(2) == 2 * (2 * matrices + 1) * SMALL_KERNEL
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    assert kept(2) == 2 * (2 * matrices + 1) * KERNEL
    assert kept(300) == kept(1, known=False) == 1024 * KERNEL
    wide, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    assert kept(300, of=wide) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_no_second_copy(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    """The files are float32: mapped as they are, or converted tensor by tensor out of the mapping."""
    made = outline(small_recipe(tmp_path, tiny("llama"), "completion", model={"dtype": dtype}), False)
    phase = loading_phase(made)
    assert phase is not None and set(phase.parts) == {"weights", "trained"}
    frozen = sum(p.numel() for p in made.model.parameters() if not p.requires_grad)
    assert phase.parts["weights"] == frozen * {"float32": 4, "bfloat16": 2}[dtype]
    assert loading_phase(replace(made, prepared=None)) is None


def test_libraries_and_the_tokenizer_count_on_a_cpu(tiny: Tiny, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, tiny("llama"), "completion")
    batches = Batches([Shape(4, 8, 4)], False, [Shape(4, 8, 4)])
    (here, made), (there, _) = simulation(recipe), simulation(recipe, on_cuda=True)
    size = LIBRARIES + WIDE + TOKEN * made.model.config.vocab_size
    found = forecast(here, batches, loading_phase(made))
    assert {phase.name: phase.parts["libraries"] for phase in found} == dict.fromkeys(
        ("training", "evaluation", "saving", "loading"), size
    )
    assert training_peak(here, Shape(4, 8, 4), False).parts["libraries"] == size
    encoder, made = simulation(small_recipe(tmp_path / "encoder", tiny("bert")))
    size = LIBRARIES + TOKEN * made.model.config.vocab_size
    assert training_peak(encoder, Shape(4, 8, 4), False).parts["libraries"] == size
    assert not any("libraries" in phase.parts for phase in forecast(there, batches))


def test_a_simulation_is_freed(tiny: Tiny, tmp_path: Path) -> None:
    """Autograd's hooks are not the collector's to see: one that referred to the simulation would keep it for ever."""
    found, _ = simulation(small_recipe(tmp_path, tiny("llama"), "completion"))
    found.train(Shape(2, 8, 4), accumulating=True)
    gone = weakref.ref(found)
    del found
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_gpu_s_checkpointed_blocks_with_dropout(tiny: Tiny, tmp_path: Path, model_type: str, precision: str) -> None:
    """Blocks computed again go the ways that they went before."""
    kind = "completion" if model_type == "gpt2" else "classification"
    recipe = small_recipe(tmp_path, tiny(model_type), kind, train={"gradient_checkpointing": True})
    found, _ = simulation(recipe, precision, on_cuda=True)
    assert found.train(Shape(4, 16, 8, padding=20), accumulating=False)
    assert found.train(Shape(4, 16, 8), accumulating=False)

"""A trained run without the training: a tiny base, its methods applied, and every trained parameter randomised."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.checkpoint import Opened
from lorakit.methods.base import Method
from lorakit.model import Base, Head, prepare
from lorakit.surgery import load_trainable, trainable_parameters, trainable_state
from lorakit.tiny import make_tiny_base

ARCHITECTURES = ("bert", "roberta", "gpt2", "llama")
EMBEDDINGS = {
    "bert": "*.word_embeddings",
    "roberta": "*.word_embeddings",
    "gpt2": "transformer.wte",
    "llama": "model.embed_tokens",
}
CASES = [
    (model_type, kind)
    for model_type in ARCHITECTURES
    for kind in ("classification", "generation")
    if kind == "classification" or model_type in {"gpt2", "llama"}
]
"""Architecture and kind of task."""


def tiny_base(directory: Path, model_type: str, **overrides: Any) -> Path:
    """A tiny base with weights large enough that a change of them shows in the logits."""
    return make_tiny_base(model_type, directory / f"base-{model_type}", initializer_range=0.1, **overrides)


def open_adapted(
    base: Path, methods: Sequence[Method], kind: str, *, scale: float = 0.1, skeleton: bool = True
) -> Opened:
    """What `open_run` gives for a run whose trained parameters all moved by N(0, scale²)."""
    section = Base(base=str(base))
    head = Head(cast(Any, kind), () if kind == "generation" else ("no", "maybe", "yes"))
    live = prepare(section, methods, head, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(live.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    state = trainable_state(live.model)
    if skeleton:
        live = prepare(section, methods, head, seed=0, skeleton=True)
        load_trainable(live.model, state, "test")
    recipe = SimpleNamespace(
        model=section, task=SimpleNamespace(kind=kind, head=kind, labels=head.labels), train=SimpleNamespace(seed=0)
    )
    return Opened(Path("run"), cast(Any, recipe), live, state)


def live_model(opened: Opened) -> nn.Module:
    """The adapted model, with its weights."""
    recipe = opened.recipe
    live = prepare(recipe.model, opened.prepared.methods, Head(recipe.task.kind, recipe.task.labels), seed=0)
    load_trainable(live.model, opened.state, "test")
    model: nn.Module = live.model
    return model


def batches() -> list[dict[str, Tensor]]:
    """Two batches of padded rows; ids that every tiny tokenizer has."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(2):
        ids = torch.randint(10, 200, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        ids[1, 6:] = 1  # RoBERTa's padding token; hidden for all
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def logits(model: nn.Module) -> Tensor:
    """The logits at all real positions of `batches`, flat."""
    found = []
    with torch.no_grad():
        for batch in batches():
            out = model(**batch).logits
            found.append((out[batch["attention_mask"].bool()] if out.ndim == 3 else out).flatten())
    return torch.cat(found)

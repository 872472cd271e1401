"""A trained run without the training: a tiny base, its methods applied, and every trained parameter randomised."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorakit.checkpoint import Opened, head_of
from lorakit.methods.base import Method
from lorakit.model import Base, Head, prepare
from lorakit.recipe import Recipe
from lorakit.schedule import Train
from lorakit.surgery import load_trainable, trainable_parameters, trainable_state
from lorakit.tasks.custom import Custom
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
    return Opened(base.parent / "run", _recipe(section, methods, kind, head.labels), live, state)


def _recipe(section: Base, methods: Sequence[Method], kind: str, labels: Sequence[str]) -> Recipe:
    """Of a run that is not there; unchecked, since some tests put methods together that a recipe may not."""
    data = {"kind": "completion" if kind == "generation" else kind, "train": "/data/train.jsonl"}
    task = Custom.model_validate(data | ({"labels": list(labels)} if labels else {}))
    train = Train(steps=1, batch_size=1, lr=1e-3)
    return Recipe.model_construct(name="test", model=section, method=list(methods), task=task, train=train)


def live_model(opened: Opened) -> nn.Module:
    """The adapted model, with its weights."""
    recipe = opened.recipe
    live = prepare(recipe.model, opened.prepared.methods, head_of(recipe), seed=0)
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
        ids[1, 6:] = 0  # what pads a decoder's rows, whose head reads the last other token; hidden for all
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

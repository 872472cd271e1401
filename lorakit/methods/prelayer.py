"""Prefix-layer tuning (Hu et al. 2021, section 5.1, PreLayer): trained activations after every layer."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lorakit.arch import Architecture
from lorakit.methods.base import Coverage
from lorakit.methods.prefix import Places, PromptVectors, first_input, reader, sample_words
from lorakit.targets import blocks


class LayerVectors(nn.Module):
    """Vectors at the input of every block.

    Args:
        vectors: (blocks, count, dim) initial values.
        places: Where they stand.
    """

    def __init__(self, vectors: Tensor, places: Places) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.places = places

    def watch(self, block: nn.Module, index: int) -> None:
        """Put the vectors into what a block reads."""
        block.register_forward_pre_hook(_Before(self, index), with_kwargs=True)


class _Before:
    """Hook of one block; an object, so that a copy of the model has hooks of its own."""

    def __init__(self, owner: LayerVectors, index: int) -> None:
        self.owner, self.index = owner, index

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = self.owner.places.put(first_input(args, kwargs), self.owner.vectors[self.index])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


class PreLayer(PromptVectors):
    """The activations at l_p + l_i places are replaced in every layer: L d (l_p + l_i) parameters.

    The L sets stand at the inputs of the L blocks: behind the embeddings, and behind every block but the last. Behind
    the last nothing reads them: a prefix would train nothing, and the infix, whose last place predicts the first word
    of the answer, would make that word the same for every prompt.

    They begin as what the frozen model makes of random words. To expect: behind LoRA and adapters (Table 4).
    Activations are large numbers, so they need large steps: MiniLM on STS-B ended at a Pearson correlation of 12, 25,
    67 and 76 with 1e-3, 5e-3, 2e-2 and 5e-2; Table 12 has 1e-4 for GPT-3.
    """

    name: Literal["prelayer"] = "prelayer"

    title: ClassVar[str] = "activations"
    usual_lr: ClassVar[tuple[float, float]] = (2e-2, 1e-3)

    def build(self, model: nn.Module, row: Architecture, places: Places, seed: int) -> tuple[nn.Module, Coverage]:
        """See `PrefixMethod`."""
        found = blocks(model, row)
        module = LayerVectors(_activations(model, list(found.values()), self.slots.count, seed), places)
        for index, block in enumerate(found.values()):
            module.watch(block, index)
        return module, {"blocks": list(found)}


def _activations(model: nn.Module, found: list[nn.Module], count: int, seed: int) -> Tensor:
    """(blocks, count, dim): what the blocks read of random words."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if table.weight.is_meta:
        return torch.empty(len(found), count, model.config.hidden_size, device="meta")  # type: ignore[union-attr, arg-type]
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(first_input(args, kwargs)[0].float().clone()), with_kwargs=True
        )
        for block in found
    ]
    words = sample_words(table.weight.shape[0], count, seed).to(table.weight.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            reader(model)(input_ids=words[None], attention_mask=torch.ones_like(words[None]))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)

"""Prefix-embedding tuning (Hu et al. 2021, section 5.1, PreEmbed): trained embeddings of special tokens."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lorakit.arch import Architecture
from lorakit.methods.base import Coverage
from lorakit.methods.prefix import PromptVectors

if TYPE_CHECKING:
    from torch import nn

    from lorakit.layers.places import Places


class PreEmbed(PromptVectors):
    """l_p + l_i trained embeddings: d (l_p + l_i) parameters; the positions of the text shift by l_p.

    They begin as the embeddings of random words. To expect: the paper's weakest method (Table 4), and more vectors than
    256 + 8 make it worse (Table 15); it needs a high learning rate (Table 12: 5e-4).
    """

    name: Literal["preembed"] = "preembed"

    title: ClassVar[str] = "embeddings"
    usual_lr: ClassVar[tuple[float, float]] = (5e-3, 5e-4)

    def build(self, model: "nn.Module", row: Architecture, places: "Places", seed: int) -> "tuple[nn.Module, Coverage]":
        """See `PrefixMethod`."""
        import torch

        from lorakit.layers.places import EmbeddedVectors, sample_words

        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        path = next(name for name, module in model.named_modules() if module is table)
        words = sample_words(table.weight.shape[0], self.slots.count, seed).to(table.weight.device)
        with torch.no_grad():
            vectors = table(words).float().clone()
        module = EmbeddedVectors(vectors, places)
        table.register_forward_hook(module.after)
        return module, {"embeddings": [path]}

"""Prefix-layer tuning (Hu et al. 2021, section 5.1, PreLayer): trained activations after every layer."""

from typing import TYPE_CHECKING, ClassVar, Literal

from lorakit.arch import Architecture
from lorakit.methods.base import Coverage
from lorakit.methods.prefix import PromptVectors
from lorakit.targets import blocks

if TYPE_CHECKING:
    from torch import nn

    from lorakit.layers.places import Places


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

    def build(self, model: "nn.Module", row: Architecture, places: "Places", seed: int) -> "tuple[nn.Module, Coverage]":
        """See `PrefixMethod`."""
        from lorakit.layers.places import LayerVectors, read_by

        found = blocks(model, row)
        module = LayerVectors(read_by(model, list(found.values()), self.slots.count, seed), places)
        for index, block in enumerate(found.values()):
            module.watch(block, index)
        return module, {"blocks": list(found)}

"""BitFit (Ben Zaken et al. 2021, arXiv 2106.10199): only biases are trained."""

from typing import TYPE_CHECKING, ClassVar, Literal

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.surgery import biases, canonical, release

if TYPE_CHECKING:
    from torch import nn


class BitFit(Method):
    """Every bias of the base is trained, in float32: of projections and of layer norms, those of the embeddings too.

    Also called Bias-only (the LoRA paper, section 5.1). Models that have biases in a few places only (Qwen2: q, k and
    v) are trained there. `usual_lr`: biases take far higher rates than whole models; GPT-3's is the
    LoRA paper's (Table 12), encoders begin somewhat below it.
    """

    name: Literal["bitfit"] = "bitfit"

    usual_lr: ClassVar[tuple[float, float]] = (1e-3, 1.6e-3)
    combines_with: ClassVar[tuple[str, ...]] = ("preembed", "prelayer", "prefix_kv")

    def needs_whole_weights(self) -> str | None:
        """The base's own tensors are what it trains."""
        return "name: bitfit"

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Release every frozen bias; the task's head is trained anyway."""
        chosen = {name: parameter for name, parameter in biases(model).items() if not parameter.requires_grad}
        if not chosen:
            raise RecipeError(
                f"method: bitfit trains biases, and this {row.model_type} model has none; use lora, or adapter"
            )
        for parameter in chosen.values():
            release(parameter)
        return {"bias": [canonical(name) for name in chosen]}

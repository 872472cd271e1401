"""Full fine-tuning: every parameter of the base is trained, in float32."""

from typing import TYPE_CHECKING, ClassVar, Literal

from lorakit.arch import Architecture
from lorakit.methods.base import Coverage, Method
from lorakit.surgery import canonical, release

if TYPE_CHECKING:
    from torch import nn


class Full(Method):
    """Full fine-tuning, the paper's first baseline (FT). The checkpoint holds every parameter."""

    name: Literal["full"] = "full"

    usual_lr: ClassVar[tuple[float, float]] = (2e-5, 2e-5)

    def needs_whole_weights(self) -> str | None:
        """The base's own tensors are what it trains."""
        return "name: full"

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Release every parameter."""
        for parameter in model.parameters():
            release(parameter)
        return {"all": [canonical(name) for name, _ in model.named_parameters()]}

"""FT-Top2 (Li & Liang 2021, arXiv 2101.00190): the last blocks are fine-tuned, the rest is frozen."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.surgery import release
from lorakit.targets import blocks

if TYPE_CHECKING:
    from torch import nn


class TopLayers(Method):
    """Fine-tuning of the last blocks and of the norm behind them, in float32; embeddings and LM head stay frozen.

    The baseline FT-Top2 of the paper's Table 3, after Li & Liang. `usual_lr` is theirs for it on E2E.
    """

    name: Literal["top_layers"] = "top_layers"

    usual_lr: ClassVar[tuple[float, float]] = (5e-5, 5e-5)

    layers: PositiveInt = 2
    """How many blocks are trained, counted from the last."""

    def shrunk(self) -> "TopLayers":
        """One block: a tiny model may have fewer than are trained here."""
        return self.model_copy(update={"layers": 1})

    def needs_whole_weights(self) -> str | None:
        """The base's own tensors are what it trains."""
        return "name: top_layers"

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Release the last blocks and, of a model that has one, the norm behind them."""
        found = blocks(model, row)
        if self.layers > len(found):
            most = f"this {row.model_type} model has {len(found)}; use {len(found)} or fewer"
            raise RecipeError(f"method.layers: {self.layers} blocks are to be trained, but {most}")
        paths = list(found)[-self.layers :]
        if norm := _final_norm(model, row, paths[-1]):
            paths.append(norm)
        for path in paths:
            for parameter in model.get_submodule(path).parameters():
                release(parameter)
        return {"top": paths}


def _final_norm(model: "nn.Module", row: Architecture, block: str) -> str | None:
    """Path of the norm behind the last block; post-LN models have none, whatever the row says (opt-350m)."""
    if row.final_norm is None:
        return None
    body = block.rpartition(".")[0].removesuffix(row.blocks)  # "transformer." of "transformer.h.23"
    path = f"{body}{row.final_norm}"
    return path if path in dict(model.named_modules()) else None

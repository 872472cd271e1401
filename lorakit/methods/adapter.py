"""Adapter layers: small networks of two layers with a bottleneck, placed between a frozen model's own layers."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from lorakit.arch import Architecture
from lorakit.errors import RecipeError
from lorakit.methods.base import Coverage, Method
from lorakit.runtime import derive
from lorakit.targets import blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

Activation = Literal["relu", "gelu", "silu", "tanh"]
_CHILD = "adapter"
"""Name of the adapter in the module that it stands behind."""
_TINY = 4
"""Bottleneck in a tiny model."""


class Adapter(Method):
    """Adapter layers, which are trained while the model is frozen, layer norms included (as in the LoRA authors' code).

    Variants, with the number of parameters per adapter of a model with d features and r in the bottleneck:

    - `houlsby` (1902.00751; AdapterH): behind the attention and behind the MLP, each before its sum with the residual
      stream; 2dr + r + d. The original trains the layer norms too and starts at N(0, 0.001²).
    - `lin` (2004.03829; AdapterL, "design 1" of Li & Liang): behind the whole block, with a layer norm of its own;
      2dr + r + 3d.
    - `pfeiffer` (2005.00247; AdapterP): behind the MLP, around the layer norm there: LN(adapter(LN(s)) + s), where s is
      the sum of the MLP's output and the residual stream. For encoders that normalise there (post-LN); 2dr + r + d.

    `drop_first` is AdapterDrop (2010.11918; AdapterD). `usual_lr` is the paper's for RoBERTa's adapters (Table 9) and
    close to its AdapterH of GPT-3 (Table 12: 1e-4).
    """

    name: Literal["adapter"] = "adapter"

    usual_lr: ClassVar[tuple[float, float]] = (3e-4, 1e-4)
    combines_with: ClassVar[tuple[str, ...]] = ("preembed", "prelayer", "prefix_kv")

    variant: Literal["houlsby", "lin", "pfeiffer"] = "houlsby"
    """Where the adapters stand: houlsby, two per block; lin, behind each block; pfeiffer, behind each MLP."""
    bottleneck: PositiveInt = 64
    """r: features between an adapter's two layers."""
    drop_first: NonNegativeInt = 0
    """The first blocks, so many, get no adapter (AdapterDrop)."""
    activation: Activation | None = None
    """Between an adapter's two layers. null: relu, but silu for houlsby in encoders (as in the authors' code)."""

    def shrunk(self) -> "Adapter":
        """A narrow bottleneck, in every block: a tiny model may have fewer than are left out here."""
        return self.model_copy(update={"bottleneck": min(_TINY, self.bottleneck), "drop_first": 0})

    def resolve(self, row: Architecture) -> "Adapter":
        """Fill in the activation."""
        if self.activation:
            return self
        silu = self.variant == "houlsby" and not row.decoder
        return self.model_copy(update={"activation": "silu" if silu else "relu"})

    def apply(self, model: "nn.Module", row: Architecture, seed: int) -> Coverage:
        """Hang the adapters into the blocks."""
        found = blocks(model, row)
        if self.drop_first >= len(found):
            most = f"this {row.model_type} model has {len(found)} blocks"
            raise RecipeError(f"method.drop_first: {self.drop_first} would leave no adapter: {most}; use a smaller one")
        places = self._places(row)
        coverage: Coverage = {place or "block": [] for place in places}
        for path, block in list(found.items())[self.drop_first :]:
            device = next(block.parameters()).device
            for place in places:
                host = f"{path}.{place}" if place else path
                self._hang(model, row, host, derive(seed, "adapter", host), device)
                coverage[place or "block"].append(host)
        return coverage

    def unmergeable(self) -> str:
        """An adapter is no linear function of its input."""
        return (
            f"method: adapter ({self.variant}) cannot be merged: its layers have a nonlinearity in between, so no "
            "weight of the base can do their work; use the run as it is, or train lora, which merges"
        )

    def _places(self, row: Architecture) -> tuple[str, ...]:
        """Modules below a block behind which the adapters stand; "" is the block itself."""
        if self.variant == "lin":
            return ("",)
        if self.variant == "pfeiffer":
            if row.mlp_norm is None:
                raise RecipeError(
                    f"method.variant: pfeiffer stands at a layer norm behind the MLP's sum with the residual stream, "
                    f"which a {row.model_type} model does not have (its norms stand in front); use houlsby or lin"
                )
            return (row.mlp_norm,)
        assert row.sublayers is not None, f"{row.model_type} has blocks without sublayers"
        return row.sublayers

    def _hang(self, model: "nn.Module", row: Architecture, path: str, seed: int, device: "torch.device") -> None:
        from lorakit.layers.bottleneck import Bottleneck

        host = model.get_submodule(path)
        assert not hasattr(host, _CHILD), f"{path} has an adapter already"
        activation = self.resolve(row).activation
        assert activation is not None
        adapter = Bottleneck(_features(model), self.bottleneck, activation, self.variant == "lin")
        adapter.initialise(seed)
        host.add_module(_CHILD, adapter.to(device))
        host.register_forward_hook(adapter.add_in_front if self.variant == "pfeiffer" else adapter.add)


def _features(model: "nn.Module") -> int:
    """Of the residual stream: d."""
    config: Any = model.config
    return int(config.hidden_size)

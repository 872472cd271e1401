"""Adapter layers: small networks of two layers with a bottleneck."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
_STD = 0.02


class Bottleneck(nn.Module):
    """x → W_up f(W_down x + b_down) + b_up, or of LN(x) where the adapter has a layer norm of its own; float32.

    It hangs in the module that it stands behind, as a child whose bound methods are forward hooks of that module: a
    copy of the model thus has hooks of its own.

    Args:
        size: Features of x.
        bottleneck: r, features in between.
        activation: f.
        normed: Whether x is normalised first (Lin et al. 2020).
    """

    def __init__(self, size: int, bottleneck: int, activation: str, normed: bool) -> None:
        super().__init__()
        self.activation = activation
        self.norm = nn.LayerNorm(size) if normed else None
        self.down = _linear(size, bottleneck)
        self.up = _linear(bottleneck, size)

    def initialise(self, seed: int) -> None:
        """Weights N(0, 0.02²) and biases zero, as the LoRA authors' code has it: close to no adapter at all."""
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=_STD, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) → (…, size), in float32, or autocast's precision."""
        if self.norm is not None:
            x = self.norm(x.float())
        elif not torch.is_autocast_enabled(x.device.type):
            x = x.float()
        h: Tensor = self.up(_ACTIVATIONS[self.activation](self.down(x)))
        return h

    def add(self, host: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook: the host's output h becomes h + adapter(h); of a tuple, its first element does."""
        if isinstance(output, tuple):
            return (self.add(host, args, output[0]), *output[1:])
        return output + self(output).to(output.dtype)

    def add_in_front(self, norm: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of a layer norm: a = LN(s) becomes LN(adapter(a) + s), with the same LN and sum s."""
        (total,) = args
        again: Tensor = norm.forward(total + self(output).to(total.dtype))  # not norm(…), which would come here again
        return again


def _linear(size: int, out: int) -> nn.Linear:
    """Without values, so that making it draws no random numbers of the process."""
    return nn.Linear(size, out, device="meta", dtype=torch.float32).to_empty(device="cpu")

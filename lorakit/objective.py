"""The loss: summed over targets, with their count beside it, so that any split of a step gives the same gradient."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.data.collate import Batch
from lorakit.data.items import IGNORE
from lorakit.packing import gather, packing_in

if TYPE_CHECKING:
    from lorakit.tasks.base import Kind


CPU_BLOCK, BLOCK = 2**20, 2**26
"""Logits that stand in float32 at a time, 4 MiB and 256 MiB: on a GPU each block costs a few launches."""


class Objective(ABC):
    """What a model is trained on; label smoothing acts in train mode only, so that losses of evaluations compare.

    Args:
        model: The unwrapped model.
    """

    def __init__(self, model: Any) -> None:
        self._packing = packing_in(model)

    def _logits(self, model: Any, batch: Batch, **options: Any) -> Tensor:
        with nullcontext() if self._packing is None else self._packing.told(batch.lengths):
            logits: Tensor = model(**batch.inputs, **options).logits
        return logits

    @abstractmethod
    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the model's forward and compare.

        Args:
            model: The prepared model; always called whole (calling its parts would miss DDP's hooks and soft caps).
            batch: A padded micro-batch.

        Returns:
            (loss summed over the batch's targets, of shape (); logits: (batch, classes), or (targets, vocabulary)).
        """


class ClassLoss(Objective):
    """Cross-entropy of the class; rows without a label count nothing.

    Args:
        model: The unwrapped model.
        label_smoothing: (1 - e) · nll + e · mean over classes of -log p.
    """

    def __init__(self, model: Any, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits = _wide(self._logits(model, batch))
        loss = F.cross_entropy(
            logits, batch.labels, ignore_index=IGNORE, reduction="sum", label_smoothing=_in_training(model, self)
        )
        return loss, logits


class NumberLoss(Objective):
    """Squared error of one number."""

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits = _wide(self._logits(model, batch))
        return F.mse_loss(logits[:, 0], batch.labels.to(logits.dtype), reduction="sum"), logits


class _SummedCrossEntropy(torch.autograd.Function):
    """Cross-entropy, summed, that makes its gradient in the forward pass, some rows at a time.

    In float32 stands only a block of rows; what is kept for the backward pass is the gradient, in the logits' dtype.
    Log-probabilities and their gradient in float32 would be three tensors as large as the logits and twice as wide.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Logits (targets, vocabulary), labels (targets,) → the loss, of shape ()."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, (BLOCK if logits.is_cuda else CPU_BLOCK) // logits.shape[-1])
        room = logits.new_empty(min(rows, len(logits)), logits.shape[-1], dtype=wide)
        for start in range(0, len(logits), rows):
            own = labels[start : start + rows, None]
            block = room[: len(own)].copy_(logits[start : start + rows])
            norm = block.logsumexp(-1, keepdim=True)
            said = (1 - smoothing) * block.gather(-1, own)
            if smoothing:
                said = said + smoothing * block.mean(-1, keepdim=True)
            total += (norm - said).sum()
            if gradient is not None:
                slope = block.sub_(norm).exp_()
                if smoothing:
                    slope -= smoothing / logits.shape[-1]
                slope.scatter_add_(-1, own, torch.full_like(norm, smoothing - 1))
                gradient[start : start + rows] = slope
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """The gradient times that of the loss; once, since it is multiplied where it stands."""
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "a second backward pass through one loss"
        return gradient.mul_(above), None, None


def token_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy summed over targets, in float32 at least.

    Args:
        logits: (targets, vocabulary).
        labels: (targets,).
        label_smoothing: (1 - e) · nll + e · mean over the vocabulary of -log p.
    """
    loss: Tensor = _SummedCrossEntropy.apply(logits, labels, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class TokenLoss(Objective):
    """Cross-entropy of the next token at target positions; the language-model head is computed there alone.

    With a vocabulary of 50,000, logits at every position are most of a small model's memory and a good part of its
    time. A hook before the head gathers the target rows, which is exact for any head that acts on positions one by one.

    Args:
        model: The unwrapped model, whose output embeddings get the hook.
        label_smoothing: (1 - e) · nll + e · mean over the vocabulary of -log p.
    """

    def __init__(self, model: Any, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self._learned: Tensor | None = None
        head: nn.Module = model.get_output_embeddings()
        head.register_forward_pre_hook(self._gather)

    def _gather(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._learned is None:
            return None
        hidden, *rest = args
        return (gather(hidden.flatten(0, 1), self._learned, len(self._learned)), *rest)

    @contextmanager
    def _at(self, learned: Tensor) -> Iterator[None]:
        self._learned = learned
        try:
            yield
        finally:
            self._learned = None

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Objective`. Position t predicts token t + 1."""
        assert batch.learned is not None
        with self._at(batch.learned):
            logits = self._logits(model, batch, use_cache=False)
        said = batch.labels.flatten().index_select(0, batch.learned + 1)
        return token_loss(logits, said, _in_training(model, self)), logits


def _in_training(model: Any, of: ClassLoss | TokenLoss) -> float:
    return of.label_smoothing if model.training else 0.0


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least: in 16 bits the sum over a vocabulary loses its small terms."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def objective(kind: "Kind", model: Any, label_smoothing: float = 0.0) -> Objective:
    """The objective of a task.

    Args:
        kind: Of the task.
        model: The unwrapped model.
        label_smoothing: Of cross-entropies.
    """
    if kind == "classification":
        return ClassLoss(model, label_smoothing)
    if kind == "regression":
        return NumberLoss(model)
    return TokenLoss(model, label_smoothing)

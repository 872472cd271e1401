"""The memory model: what a run's training, evaluation and generation need, from one step on fake tensors."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.data.collate import Batch
from lorakit.kernels import as_on_gpu
from lorakit.ledger import Bytes, Ledger, LikeCuda, fake_copy
from lorakit.lengths import Shape
from lorakit.objective import objective
from lorakit.packing import packing_in
from lorakit.recipe import Recipe
from lorakit.surgery import trainable_parameters

BuildOptimizer = Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer]


class Simulation:
    """A model that can be trained and evaluated on batches of any shape, at no cost but the count of its bytes.

    Args:
        model: Prepared: what is trained is released. Not changed.
        recipe: The task's kind, the smoothing, the checkpointing.
        precision: What is computed in, resolved.
        build_optimizer: Makes the optimiser of the trained parameters.
        on_cuda: Whether to keep what CUDA's kernels keep.
    """

    def __init__(
        self, model: Any, recipe: Recipe, precision: str, build_optimizer: BuildOptimizer, on_cuda: bool
    ) -> None:
        self.recipe, self.precision, self.on_cuda = recipe, precision, on_cuda
        self.mode, self.ledger = FakeTensorMode(), Ledger()
        self._trained: dict[tuple[Shape, bool], Bytes] = {}
        self.model: Any = fake_copy(model, self.mode)
        self.packing = packing_in(self.model)
        if recipe.train.gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.objective = objective(recipe.task.head, self.model, recipe.train.label_smoothing)
        self.trained: list[nn.Parameter] = [p for p in self.model.parameters() if p.requires_grad]
        with self._computing():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                self.ledger.enter(tensor, "trained" if tensor.requires_grad else "weights")
        if recipe.task.head == "generation":
            self.model.get_output_embeddings().register_forward_pre_hook(self._logits_begin)
        for parameter in self.trained:
            # Not with `self`: what autograd's own hooks refer to, the collector does not see, and nobody would free it.
            hook = partial(_gradient_made, self.ledger)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        self._allocate_optimizer(build_optimizer)

    def _computing(self) -> ExitStack:
        stack = ExitStack()
        modes: list[Any] = [self.mode, self.ledger, *([LikeCuda()] if self.on_cuda else [])]
        for mode in modes:
            stack.enter_context(mode)
        if self.on_cuda:
            stack.enter_context(as_on_gpu())
        if self.packing is not None:
            stack.callback(self.packing.end)
        return stack

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, self.precision))

    def _logits_begin(self, *_: Any) -> None:
        if self.ledger.part == "activations":  # not when a checkpointed part is computed again
            self.ledger.part = "logits"

    def _make_gradients(self) -> None:
        self.ledger.part = "gradients"
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)

    def _allocate_optimizer(self, build: BuildOptimizer) -> None:
        with self._computing():
            self._make_gradients()
            self.optimizer = build(trainable_parameters(self.model))
            self.ledger.part = "optimiser"
            with self.ledger.peak_of() as self.update:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @property
    def optimizer_bytes(self) -> int:
        """The optimiser's state."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(value.numel() * value.element_size() for value in states if isinstance(value, Tensor) and value.ndim)

    @property
    def constant(self) -> Bytes:
        """What is there between two steps: the weights, what is trained, and the optimiser's state."""
        return {part: size for part, size in self.ledger.live.items() if size}

    def train(self, shape: Shape, accumulating: bool) -> Bytes:
        """The fullest moment of a forward and a backward pass, the optimiser's state in memory.

        Args:
            shape: Of the micro-batch.
            accumulating: Whether a step has more than one, so that the gradients of those before are there.
        """
        if (shape, accumulating) not in self._trained:
            self._trained[shape, accumulating] = self._train(shape, accumulating)
        return self._trained[shape, accumulating]

    def _train(self, shape: Shape, accumulating: bool) -> Bytes:
        self.model.train()
        with self._computing():
            if accumulating:
                self._make_gradients()
            batch = self._batch(shape)
            self.ledger.part = "activations"
            with self.ledger.peak_of() as found:
                with self._autocast():
                    loss, _ = self.objective(self.model, batch)
                self.ledger.part = "backward"
                loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=True)
        return max(found, self.update, key=lambda peak: sum(peak.values()))

    def evaluate(self, shape: Shape) -> Bytes:
        """The fullest moment of a forward pass without gradients."""
        self.model.eval()
        with self._computing(), torch.no_grad(), self._autocast():
            batch = self._batch(shape)
            self.ledger.part = "activations"
            with self.ledger.peak_of() as found:
                self.objective(self.model, batch)
        return found

    def generate(self, rows: int, width: int) -> Bytes:
        """The fullest moment of greedy generation: as if prompts and new tokens were read at once into the cache."""
        self.model.eval()
        with self._computing(), torch.no_grad(), self._autocast():
            batch = self._batch(Shape(rows, width, rows))
            self.ledger.part = "activations"
            with self.ledger.peak_of() as found:
                self.model(**batch.inputs, use_cache=True, logits_to_keep=1)
        return found

    def computed(self, shape: Shape) -> int:
        """Tokens of a batch that the model's blocks compute."""
        return shape.tokens if self.packing is None else self.packing.rounded(shape.real)

    def _batch(self, shape: Shape) -> Batch:
        self.ledger.part = "activations"
        size = (shape.rows, shape.width)
        inputs = {
            "input_ids": torch.zeros(size, dtype=torch.long),
            "attention_mask": torch.ones(size, dtype=torch.long),
        }
        kind = self.recipe.task.head
        labels = torch.zeros(size if kind == "generation" else (shape.rows,), dtype=torch.long)
        learned = torch.zeros(shape.targets, dtype=torch.long) if kind == "generation" else None
        lengths = [len(part) for part in np.array_split(range(shape.real), shape.rows)]
        return Batch(inputs, labels.float() if kind == "regression" else labels, lengths, learned)


def _gradient_made(ledger: Ledger, parameter: Tensor) -> None:
    assert parameter.grad is not None
    ledger.move(parameter.grad, "gradients")


def checkpoint_gradients(model: Any) -> None:
    """Let a transformers model keep the inputs of its blocks alone, and compute the rest again."""
    # transformers renames it within the versions that we support
    renamed = getattr(model, "activation_checkpointing_enable", None)
    (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})

"""The memory that a run will need: the fullest moment of its loading, training, evaluation and generation.

It is memory in use, above what the imports take: what the GPU's allocator, or the C library, has handed out. A process
may occupy more, since both keep freed blocks that the next tensors do not fit into.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lorakit.data.batches import Limit, by_length
from lorakit.evaluate import BATCH
from lorakit.generate import batch_limit
from lorakit.ledger import Bytes
from lorakit.lengths import Shape, cut_steps, evaluation_shapes, shapes
from lorakit.memory import BuildOptimizer, Simulation
from lorakit.outline import Outline, outline
from lorakit.recipe import Recipe
from lorakit.splits import SplitData

KERNEL, SMALL_KERNEL = 600_000, 40_000
"""Bytes. On a CPU in 16 bits oneDNN compiles a kernel per shape of a product, and keeps it. Measured: 240 batches of
random sizes through four matrices, forward and backward, grew by 6.9 MiB per new size, up to 594 MiB, on a CPU that
multiplies bfloat16 (AVX512-BF16); by 0.3 MiB, 39,400 bytes a kernel, on one that does not."""
KERNELS = 1024
"""Kernels that it keeps."""
LIBRARIES, WIDE = 12 * 2**20, 15 * 2**20
"""Bytes that the library of float32 products (MKL) takes at its first ones on a CPU, and keeps. Measured, one thread:
5.1 MiB at a product of 400 x 384 x 384, 6.8 more at one four times as wide; 15.3 more at one of 250 x 576 x 49,152, as
the logits of a vocabulary are, and nothing after that. SmolLM2 in bfloat16 comes to use as much more as in float32."""
TOKEN = 200
"""Bytes of a token in the tokenizer. Measured: 6.9 MiB for MiniLM's 30,522, 8.4 MiB for SmolLM2's 49,152."""


@dataclass(frozen=True)
class Phase:
    """The fullest moment of a part of the run.

    Args:
        name: loading, training, evaluation, generation or saving.
        parts: What fills it.
        shape: Of the batch that does.
    """

    name: str
    parts: Bytes
    shape: Shape | None = None

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Batches:
    """The shapes that decide, largest first.

    Args:
        training: Micro-batches.
        accumulating: Whether a step has several.
        evaluation: Batches of the validation splits.
        generation: Of prompts with room for the new tokens; None where nothing is generated.
    """

    training: Sequence[Shape]
    accumulating: bool
    evaluation: Sequence[Shape]
    generation: Shape | None = None
    known: bool = True
    """Whether these are the shapes of real rows, and not one that stands for all."""


def batches_of(
    recipe: Recipe, train: SplitData, validation: Sequence[SplitData], limit: Limit, total: int, world: int = 1
) -> Batches:
    """The shapes that a run will meet, from its encoded rows.

    Args:
        recipe: For the schedule and what is generated.
        train: The training split.
        validation: What is evaluated.
        limit: Of a micro-batch.
        total: Steps of the run.
        world: Devices.
    """
    lengths, targets = train.encoded.lengths, train.encoded.targets
    cut = cut_steps(recipe.train, lengths, total, limit, world)
    looked_at = [
        evaluation_shapes(data.encoded.lengths, data.encoded.targets, BATCH) for data in validation if len(data.encoded)
    ]
    generation = None
    if recipe.generate is not None:
        new = recipe.generate.max_new_tokens
        wanted = [data.encoded.lengths - data.encoded.targets + new for data in validation if len(data.encoded)]
        most, beams = batch_limit(recipe.generate), recipe.generate.beams
        every = [Shape(len(rows) * beams, int(w[rows].max()), 0) for w in wanted for rows in by_length(w, most)]
        generation = max(every, key=lambda shape: shape.tokens, default=None)
    return Batches(
        shapes([group for step in cut for group in step], lengths, targets),
        any(len(step) > 1 for step in cut),
        [shape for several in looked_at for shape in several],
        generation,
    )


def forecast(simulation: Simulation, batches: Batches, loading: Phase | None = None) -> list[Phase]:
    """What each part of a run needs at its fullest, the fullest first.

    Args:
        simulation: The model.
        batches: What it will meet.
        loading: What loading the base needs, where that is known.
    """
    phases = [_heaviest("training", simulation, batches.training, batches.accumulating)]
    if batches.evaluation:
        phases.append(_heaviest("evaluation", simulation, batches.evaluation))
    if batches.generation is not None:
        parts = simulation.generate(batches.generation.rows, batches.generation.width)
        phases.append(Phase("generation", parts, batches.generation))
    if not simulation.on_cuda:
        kept = _kernels(simulation, batches)
        phases = [*(_with_kernels(phase, kept) for phase in phases), saving_phase(simulation)]
        phases += [loading] if loading is not None else []
        phases = [_with_libraries(phase, simulation) for phase in phases]
    return sorted(phases, key=lambda phase: -phase.total)


def loading_phase(made: Outline) -> Phase | None:
    """Loading on a CPU: the weights, in the files' dtype or in another.

    transformers reads tensor by tensor out of files that are mapped into memory. Where the dtype is the files' own, the
    mapping is the weights. Where it is not, the converted tensors are new, and what was read of the mapping is the
    file's cache: the kernel takes it back where memory is short, and it is unmapped at the end. No second copy is made.

    Returns:
        None where the base's files are not here.
    """
    if made.prepared is None:
        return None
    frozen, trained = (
        sum(p.numel() * p.element_size() for p in made.model.parameters() if p.requires_grad == wanted)
        for wanted in (False, True)
    )
    return Phase("loading", {"weights": frozen, "trained": trained})


def saving_phase(simulation: Simulation) -> Phase:
    """Saving a checkpoint on a CPU: a copy of what is trained, and the optimiser's state as the bytes of a file."""
    constant = simulation.constant
    return Phase("saving", {**constant, "copies": constant["trained"] + simulation.optimizer_bytes})


def _kernels(simulation: Simulation, batches: Batches | None = None) -> int:
    """Compiled kernels that a run comes to keep: two per matrix and number of tokens, for there and back.

    Args:
        simulation: Of the model; none are kept on CUDA, or in float32.
        batches: Of the run; as many as can be, where they are not known.
    """
    if simulation.on_cuda or simulation.precision == "float32":
        return 0
    if batches is None or not batches.known:
        return KERNELS
    matrices = len({parameter.shape for parameter in simulation.model.parameters() if parameter.ndim == 2})
    sizes, targets = (
        {simulation.computed(shape) for shape in batches.training},
        {shape.targets for shape in batches.training},
    )
    return min(KERNELS, 2 * (matrices * len(sizes) + len(targets)))


def _with_kernels(phase: Phase, kept: int) -> Phase:
    size = KERNEL if torch.cpu._is_avx512_bf16_supported() else SMALL_KERNEL
    return Phase(phase.name, {**phase.parts, "kernels": kept * size}, phase.shape) if kept else phase


def _with_libraries(phase: Phase, simulation: Simulation) -> Phase:
    wide = WIDE if simulation.recipe.task.head == "generation" else 0
    size = LIBRARIES + wide + TOKEN * len(simulation.model.get_input_embeddings().weight)
    return Phase(phase.name, {**phase.parts, "libraries": size}, phase.shape)


def training_peak(simulation: Simulation, shape: Shape, accumulating: bool) -> Phase:
    """What one micro-batch needs in training."""
    found = _with_kernels(Phase("training", simulation.train(shape, accumulating), shape), _kernels(simulation))
    return found if simulation.on_cuda else _with_libraries(found, simulation)


def _heaviest(name: str, simulation: Simulation, found: Sequence[Shape], accumulating: bool = False) -> Phase:
    """The batch with the most tokens to compute, unless another with more targets needs more by that one's measure.

    With padding, which is packed, or without it, whichever needs more: packing has room of its own.
    """

    def phase(shape: Shape) -> Phase:
        parts = simulation.train(shape, accumulating) if name == "training" else simulation.evaluate(shape)
        return Phase(name, parts, shape)

    kinds = [[shape for shape in found if bool(shape.padding) is padded] for padded in (False, True)]
    largest = [phase(max(kind, key=simulation.computed)) for kind in kinds if kind]
    first = max(largest, key=lambda one: one.total)
    assert first.shape is not None
    token = first.parts.get("activations", 0) / simulation.computed(first.shape)
    target = (first.parts.get("logits", 0) + first.parts.get("backward", 0)) / max(1, first.shape.targets)
    other = max(found, key=lambda shape: simulation.computed(shape) * token + shape.targets * target)
    return first if other == first.shape else max(first, phase(other), key=lambda one: one.total)


class Predictor:
    """Predicts a run's memory from its batches; made before the base is loaded, so that its imports count as imports.

    Args:
        recipe: Validated.
        precision: What is computed in.
        build: Makes the optimiser.
        on_cuda: Whether the run uses a GPU.
    """

    def __init__(self, recipe: Recipe, precision: str, build: BuildOptimizer, on_cuda: bool) -> None:
        made = outline(recipe, on_cuda)
        self._loading = loading_phase(made)
        self._simulate = partial(Simulation, made.model, recipe, precision, build, on_cuda)

    def bytes(self, batches: Batches) -> int | None:
        """What the run needs at its fullest; None for a model that cannot be computed without data."""
        try:
            return forecast(self._simulate(), batches, self._loading)[0].total
        except (RuntimeError, NotImplementedError, TypeError, AssertionError):  # as torch's fake tensors refuse
            return None

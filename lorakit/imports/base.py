"""What an adapter file of another tool says, before it is known whether it fits a base."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from lorakit.compose import Parts
from lorakit.errors import CheckpointError
from lorakit.tasks.base import Kind
from lorakit.weights import read_header


@dataclass(frozen=True)
class Foreign:
    """An adapter as its file has it: every module whole, nothing compared with a model.

    Args:
        format: The tool's name.
        file: What was read.
        tensors: How many it holds.
        parts: The adapter; names are those of the model's modules.
        kind: What its model is for, where the file says so.
        made_for: The base that it names.
        targeted: Whether the tool would adapt a module of this path; None where the file does not say.
        bias_known: Whether the file says which biases were trained.
        notes: For the person.
    """

    format: str
    file: Path
    tensors: int
    parts: Parts
    kind: Kind | None = None
    made_for: str | None = None
    targeted: Callable[[str], bool] | None = None
    bias_known: bool = True
    notes: tuple[str, ...] = field(default=())


def read_weights(file: Path) -> dict[str, object]:
    """What a file of weights holds by name: safetensors, or PyTorch's pickles, of which only tensors are taken.

    Raises:
        CheckpointError: It cannot be read; nothing in it is run.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        read_header(file)
    try:
        if file.suffix == ".safetensors":
            return dict(load_safetensors(file.read_bytes()))
        read = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's bytes lead to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file}: not a readable file of weights: {reason}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{file}: holds a {type(read).__name__}, and not tensors by name")
    return read


def tensors_of(file: Path, found: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors, in float32 and without gaps.

    Raises:
        CheckpointError: Something is none, or holds no finite numbers; lists all such.
    """
    problems = []
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            problems.append(f"{file}: {name}: is no tensor")
        elif not value.is_floating_point():
            problems.append(
                f"{file}: {name}: holds {value.dtype}, and no real numbers; quantised adapters are not read"
            )
        elif not torch.isfinite(whole := value.detach().to(torch.float32, copy=True).contiguous()).all():
            problems.append(f"{file}: {name}: holds NaN or infinity")
        else:
            tensors[name] = whole
    if problems:
        raise CheckpointError(*problems)
    if not tensors:
        raise CheckpointError(f"{file}: holds nothing")
    return tensors


def paired(file: Path, factors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse factors that are no pairs of matrices.

    Args:
        file: For messages.
        factors: Module path → "A" and "B".

    Raises:
        CheckpointError: A partner is missing, or something is no matrix; lists all such.
    """
    problems = []
    for path, pair in sorted(factors.items()):
        problems += [f"{file}: {path}: has no lora_{name}" for name in "AB" if name not in pair]
        problems += [
            f"{file}: {path}: lora_{name} has shape {tuple(pair[name].shape)}, and is no matrix"
            for name in "AB"
            if name in pair and (pair[name].ndim != 2 or not pair[name].numel())
        ]
    if problems:
        raise CheckpointError(*problems)
    if not factors:
        raise CheckpointError(f"{file}: holds no lora_A and lora_B")

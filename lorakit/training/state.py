"""Checkpoints of a run: everything that continuing it exactly needs.

A checkpoint is written beside, synced and renamed. Randomness needs no state: order and masks are functions of the
seed and the step. What is recorded beside the optimiser (plan, threads, device, versions) lets a resume say when its
bytes may differ.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from lorakit.checkpoint import ADAPTER, CHECKPOINTS, RECIPE, Provenance, read_adapter, save_adapter
from lorakit.errors import CheckpointError
from lorakit.runtime import atomic_directory, write_atomic
from lorakit.weights import read_header

_TENSORS = "optimizer.safetensors"
_STATE = "state.json"
FILES = (RECIPE, ADAPTER, "metrics.jsonl", "report.json", "report.md", "report.html")
"""What a run writes at the top of its directory; each appears whole, under its name, or not at all."""


@dataclass
class Best:
    """The best evaluation so far.

    Args:
        step: Where it was; None before the first.
        value: Of the selecting metric.
        waited: Evaluations since then.
    """

    step: int | None = None
    value: float | None = None
    waited: int = 0


@dataclass
class TrainingState:
    """The part of a checkpoint that is no tensor.

    Args:
        step: Optimiser steps done.
        tokens: Tokens read so far.
        seconds: Training time so far.
        evaluated: Whether this step's evaluation, if one was due, is done.
        best: The best evaluation so far.
        steps: Optimiser steps' own counters, by parameter.
        plan: Micro-batch limit and number of processes.
        machine: Threads, device and versions.
        scaler: Of float16's loss, where there is one.
        init_from: What the run started from, where it was another one.
        data: Split → hash of its token ids and labels.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: bool = True
    best: Best = field(default_factory=Best)
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, float] = field(default_factory=dict)
    init_from: dict[str, Any] | None = None
    data: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    state: TrainingState,
    adapter: Mapping[str, Tensor],
    provenance: Provenance,
    optimizer: tuple[torch.optim.Optimizer, Mapping[str, nn.Parameter]],
) -> Path:
    """Write `checkpoints/step-N`, then prune: the newest and the best stay.

    Args:
        run: The run directory.
        state: Its `steps` are filled in here.
        adapter: The trainable parameters.
        provenance: Of the adapter.
        optimizer: The optimiser, and its parameters by name.
    """
    tensors, state.steps = _optimizer_state(*optimizer)
    final = run / CHECKPOINTS / f"step-{state.step}"
    text = json.dumps(asdict(state), indent=1)
    if final.is_dir():  # the same step again, its evaluation made up for: the tensors are those that are there
        write_atomic(final / _STATE, text)
    else:
        with atomic_directory(final) as beside:
            save_adapter(beside / ADAPTER, adapter, provenance)
            (beside / _TENSORS).write_bytes(save_bytes(tensors))
            (beside / _STATE).write_text(text)
    for old in (run / CHECKPOINTS).glob("step-*"):
        if old.name not in {f"step-{state.step}", f"step-{state.best.step}"}:
            shutil.rmtree(old)
    return final


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Moments as tensors by parameter name; counters (one number each) apart."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                tensors[f"{name}/{key}"] = value.detach().cpu().contiguous()
            else:
                numbers.setdefault(name, {})[key] = float(value)
    return tensors, numbers


def restore_optimizer(
    checkpoint: Path,
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Put a checkpoint's moments and counters back."""
    tensors = load_bytes((checkpoint / _TENSORS).read_bytes())
    fused = optimizer.defaults.get("fused")  # then the counters live on the device
    for name, parameter in parameters.items():
        kept: dict[str, Any] = {
            key.rpartition("/")[2]: tensor.to(parameter.device)
            for key, tensor in tensors.items()
            if key.rpartition("/")[0] == name
        }
        counters = state.steps.get(name, {})
        kept |= {
            key: torch.tensor(value, device=parameter.device if fused else None) for key, value in counters.items()
        }
        optimizer.state[parameter] = kept


def newest_checkpoint(run: Path) -> tuple[Path, TrainingState, dict[str, Tensor]] | None:
    """The newest checkpoint that is whole; torn ones are passed over. None where there is none."""
    found = sorted((run / CHECKPOINTS).glob("step-*"), key=_step_of, reverse=True)
    for checkpoint in found:
        try:
            return checkpoint, *_read(checkpoint)
        except CheckpointError:
            continue
    return None


def sweep(run: Path, newest: Path | None) -> None:
    """Remove what a killed process left behind: checkpoints that are torn or half written, and unfinished files.

    Args:
        run: The run directory.
        newest: The checkpoint to go on from; those after it are torn.
    """
    last = -1 if newest is None else _step_of(newest)
    for path in (run / CHECKPOINTS).glob("*step-*"):
        if path.name.startswith(".") or _step_of(path) > last:
            shutil.rmtree(path)
    for file in run.glob(".*.????????"):
        if file.is_file() and file.name[1:].rpartition(".")[0] in FILES:
            file.unlink()


def _read(checkpoint: Path) -> tuple[TrainingState, dict[str, Tensor]]:
    adapter, _ = read_adapter(checkpoint / ADAPTER)
    read_header(checkpoint / _TENSORS)
    try:
        fields = json.loads((checkpoint / _STATE).read_text())
        state = TrainingState(**{**fields, "best": Best(**fields["best"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint / _STATE}: damaged: {error}") from error
    return state, adapter


def _step_of(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1

"""Checkpoints of a run: everything that continuing it exactly needs.

A checkpoint is written beside, synced and renamed. Randomness needs no state: order and masks are functions of the
seed and the step. What is recorded beside the optimiser (plan, threads, device, versions) lets a resume say when its
bytes may differ.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save as save_bytes
from torch import Tensor, nn

from lorakit.checkpoint import (
    ADAPTER,
    CHECKPOINTS,
    RECIPE,
    Provenance,
    StoredTensors,
    check_digest,
    read_adapter,
    save_adapter,
)
from lorakit.errors import CheckpointError, NewerFormat
from lorakit.lock import LOCK
from lorakit.runtime import atomic_directory, disk_errors, write_atomic
from lorakit.seal import sealed, tensors_digest, unsealed
from lorakit.surgery import like, whole
from lorakit.training.audit import check_written
from lorakit.training.eight_bit import is_8bit, is_table, restored, state_shapes
from lorakit.weights import Entry, read_header

Moments = tuple[dict[str, Tensor], dict[str, dict[str, float]]]
"""Of an optimiser: tensors by parameter and kind, and the counters, one number each, by parameter."""
REHEARSAL = ".rehearsal"
"""A folder for the checkpoint that is saved before the first step, to see whether that can be done."""
_TENSORS = "optimizer.safetensors"
_STATE = "state.json"
_LEFT_BEHIND = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""What `write_atomic` and `atomic_directory` call what is not complete yet."""
FILES = (RECIPE, ADAPTER, "metrics.jsonl", "report.json", "report.md", "report.html")
"""What a run writes at the top of its directory; each appears whole, under its name, or not at all."""
_FOLDERS = ("predictions", "plots")
"""Where a run writes more of them."""


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
        digests: Of the adapter's and the optimiser's tensors in the files beside it (see `seal`).
        skipped: Steps so far without a finite gradient, which changed nothing.
        skipped_in_a_row: The last ones of them, with no other in between.
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
    digests: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    skipped_in_a_row: int = 0


def save_checkpoint(
    run: Path,
    state: TrainingState,
    adapter: Mapping[str, Tensor],
    provenance: Provenance,
    moments: Moments,
) -> Path:
    """Write `checkpoints/step-N`, then prune: the newest and the best stay.

    Args:
        run: The run directory.
        state: Its `steps` and `digests` are filled in here.
        adapter: The trainable parameters.
        provenance: Of the adapter.
        moments: Of the optimiser.
    """
    tensors, state.steps = moments
    final = run / CHECKPOINTS / f"step-{state.step}"
    state.digests = {ADAPTER: tensors_digest(adapter), _TENSORS: tensors_digest(tensors)}
    text = json.dumps(sealed(asdict(state)), indent=1)
    if final.is_dir():  # the same step again, its evaluation made up for: the tensors are those that are there
        write_atomic(final / _STATE, text)
    else:
        with atomic_directory(final) as beside:
            save_adapter(beside / ADAPTER, adapter, provenance)
            (beside / _TENSORS).write_bytes(save_bytes(tensors))
            check_written(beside / ADAPTER, adapter)
            check_written(beside / _TENSORS, tensors)
            (beside / _STATE).write_text(text)
    _prune(run, state)
    return final


def _prune(run: Path, state: TrainingState | None) -> None:
    """Remove every checkpoint but the newest and the best, whole or not."""
    kept = set() if state is None else {f"step-{state.step}", f"step-{state.best.step}"}
    for path in (run / CHECKPOINTS).glob("*step-*"):
        if path.name not in kept:
            with disk_errors(path):
                shutil.rmtree(path)


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> Moments:
    """The optimiser's moments as whole tensors on the CPU; all processes must ask.

    Args:
        optimizer: The optimiser.
        parameters: What it trains, by name.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if is_table(key):
                continue
            if isinstance(value, Tensor) and value.ndim:
                tensors[f"{name}/{key}"] = whole(value.detach()).cpu().contiguous()
            else:
                numbers.setdefault(name, {})[key] = float(whole(value) if isinstance(value, Tensor) else value)
    return tensors, numbers


def restore_optimizer(
    tensors: Mapping[str, Tensor],
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Put a checkpoint's moments (see `read_moments`) and counters back."""
    fused = optimizer.defaults.get("fused")  # then the counters live on the device
    for name, parameter in parameters.items():
        kept: dict[str, Any] = {
            key.rpartition("/")[2]: like(tensor, parameter)
            for key, tensor in tensors.items()
            if key.rpartition("/")[0] == name
        }
        counters = state.steps.get(name, {})
        kept |= {
            key: torch.tensor(value, device=parameter.device if fused else None) for key, value in counters.items()
        }
        optimizer.state[parameter] = restored(optimizer, parameter, kept) if is_8bit(optimizer) else kept


def read_moments(checkpoint: Path) -> dict[str, Tensor]:
    """The optimiser's moments in a checkpoint that `newest_checkpoint` has found whole, by parameter and kind."""
    return dict(StoredTensors(checkpoint / _TENSORS))


def newest_checkpoint(
    run: Path, say: Callable[[str], None] = lambda text: None
) -> tuple[Path, TrainingState, dict[str, Tensor]] | None:
    """The newest checkpoint that is whole; None where there is none.

    Args:
        run: The run directory.
        say: Told of those that are damaged, which are passed over.

    Raises:
        CheckpointError: One may be whole and cannot be read, by this lorakit or by anybody now.
    """
    found = sorted((run / CHECKPOINTS).glob("step-*"), key=_step_of, reverse=True)
    for checkpoint in found:
        try:
            state, adapter = _read(checkpoint)
        except CheckpointError as error:
            if _may_be_whole(error):
                raise
            say(f"warning: {checkpoint.name} is damaged and passed over: {error}")
            continue
        return checkpoint, state, adapter
    if found:
        say(f"warning: {run}: no checkpoint is whole: the run starts afresh")
    return None


def _may_be_whole(error: CheckpointError) -> bool:
    """Whether it is for a person to say that a checkpoint is lost: a disk that fails now may read it tomorrow."""
    cause = error.__cause__
    refused = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError | NotADirectoryError)
    return refused or isinstance(error, NewerFormat)


def require_best(run: Path, state: TrainingState) -> None:
    """Whether the best checkpoint, which the run would publish, is whole.

    Raises:
        CheckpointError: It is not.
    """
    if state.best.value is not None and state.best.step != state.step:  # None: the last one is published, whichever
        try:
            read_adapter(run / CHECKPOINTS / f"step-{state.best.step}" / ADAPTER)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. It is the best so far, which the run would publish: put it back, or train again with "
                "--overwrite"
            ) from error


def sweep(run: Path, state: TrainingState | None) -> None:
    """Remove what a killed process left behind: checkpoints that are torn, or pruned in part, and unfinished files.

    Args:
        run: The run directory.
        state: Of the checkpoint to go on from: it and the best one stay.
    """
    _prune(run, state)
    with disk_errors(run):
        for file in [*_unfinished(run)]:
            file.unlink()


def _unfinished(run: Path) -> Iterator[Path]:
    for file in run.glob(".*"):
        if (match := _LEFT_BEHIND.fullmatch(file.name)) and match[1] in FILES and file.is_file():
            yield file
    for folder in (*(run / name for name in _FOLDERS), *(run / CHECKPOINTS).glob("step-*")):
        yield from (file for file in folder.glob(".*") if _LEFT_BEHIND.fullmatch(file.name) and file.is_file())


def is_empty(run: Path) -> bool:
    """Whether nothing is in a directory but what a run that was killed in its first moment has left there."""
    unfinished = set(_unfinished(run))
    return all(path.name in (LOCK, REHEARSAL) or path in unfinished for path in run.iterdir())


def clear(run: Path) -> None:
    """Remove what a run directory holds, but for the lock.

    The recipe goes last: a directory that is half removed can still be told from somebody else's files. Checkpoints go
    first: without its history no run must go on.

    Raises:
        LorakitError: The disk refuses.
    """
    with disk_errors(run):
        for path in sorted(run.iterdir(), key=lambda path: (path.name == RECIPE, path.name != CHECKPOINTS)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()


def _read(checkpoint: Path) -> tuple[TrainingState, dict[str, Tensor]]:
    adapter, _ = read_adapter(checkpoint / ADAPTER)
    state = _read_state(checkpoint / _STATE)
    if state.step != _step_of(checkpoint):
        raise CheckpointError(f"{checkpoint / _STATE}: damaged: it is of step {state.step}")
    if state.digests.get(ADAPTER) != tensors_digest(adapter):
        raise CheckpointError(f"{checkpoint / ADAPTER}: damaged: it is of another checkpoint")
    moments, _ = read_header(checkpoint / _TENSORS)
    _check_moments(checkpoint / _TENSORS, moments, state, adapter)
    file = checkpoint / _TENSORS
    check_digest(file, StoredTensors(file), state.digests.get(_TENSORS))
    return state, adapter


def _read_state(file: Path) -> TrainingState:
    try:
        fields = unsealed(json.loads(file.read_bytes()))
        return TypeAdapter(TrainingState).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"]))
        raise CheckpointError(f"{file}: damaged: {where}: {found['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error


def _check_moments(
    file: Path, moments: Mapping[str, Entry], state: TrainingState, adapter: Mapping[str, Tensor]
) -> None:
    """Whether each parameter has all of its moments and its counter, or, before its first gradient, none."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in moments.items():
        name, _, kind = key.rpartition("/")
        found.setdefault(name, {})[kind] = entry.shape
    if found.keys() != state.steps.keys() or any(
        name not in adapter or shapes not in state_shapes(adapter[name].shape) for name, shapes in found.items()
    ):
        raise CheckpointError(f"{file}: damaged: its moments are not those of the adapter beside it")


def _step_of(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1

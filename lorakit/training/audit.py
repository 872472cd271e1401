"""Audits: what would spoil a run without a word is looked for before the first step, in the first ones, at saves."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorakit.data.encode import end_ids
from lorakit.data.items import IGNORE
from lorakit.data.rows import ChatRow, ChoiceRow, Row, TextRow
from lorakit.errors import CheckpointError, DataError, LorakitError
from lorakit.splits import SplitData
from lorakit.surgery import canonical, trainable_parameters, whole

STEPS = 5
"""Steps at a `TELLING` rate in which every trained tensor must get a gradient and move. LoRA's A gets none in the
first, since B is zero; a tensor behind two that begin at zero would get its first in the third."""
TELLING = 0.01
"""Share of the highest rate from which on a step counts for this: smaller ones may be rounded away."""
TOO_MANY_SKIPPED = 20
"""Steps in a row without a finite gradient that end a run. Float16's scale begins at 2^16 and is halved after each
(torch.amp.GradScaler), so that 16 in a row may be no more than its search for a scale; fairseq gives up at a scale of
1e-4, which is 20 halvings from its 2^7."""
_NAMED = 3
_BUG = "this is a fault in lorakit, and the run would be worth nothing: please report it with the recipe"


def check_rows(data: SplitData, tokenizer: Any) -> None:
    """Whether every row of a training split teaches something and, where text is generated, when to stop.

    Raises:
        DataError: Names the rows, counted from 1 as the task read them, and why.
    """
    problems = []
    items, counted, first = data.encoded.items, data.encoded.summary, data.rows[0]
    classed = isinstance(first, TextRow | ChoiceRow)
    suspects = np.flatnonzero(counted.last == IGNORE if classed else counted.targets == 0).tolist()
    empty: dict[str, list[int]] = {}
    for index, row in _rows_at([items[index].row for index in suspects], data.rows):
        empty.setdefault(_nothing_learned(row), []).append(index)
    problems += [f"{data.name}: {named_rows(rows)}: nothing to learn: {why}" for why, rows in empty.items()]
    if not isinstance(first, TextRow) and not empty:
        endless = [items[i].row for i in np.flatnonzero(~np.isin(counted.last, end_ids(first, tokenizer))).tolist()]
        if endless:
            problems.append(
                f"{data.name}: {named_rows(endless)}: the end of the text is not learned, so that the model would not "
                "know when to stop: this base's chat template ends these turns in another way than others"
            )
    if problems:
        raise DataError(*problems)


def _rows_at(wanted: Collection[int], rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """(index, row) of some rows, in one pass: they may have to be read again."""
    there = set(wanted)
    return [(index, row) for index, row in enumerate(rows) if index in there] if there else []


def _nothing_learned(row: Row) -> str:
    if isinstance(row, TextRow | ChoiceRow):
        return "it has no label"
    if isinstance(row, ChatRow) and not any(message["role"] == "assistant" for message in row.messages):
        return "the assistant says nothing in it"
    return "no token is left that the model would have to predict"


def named_rows(rows: Sequence[int]) -> str:
    """Indices of rows as people count them: "rows 3, 17, 20 and 5 more"."""
    shown = ", ".join(str(row + 1) for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Whether the optimiser has each trained tensor exactly once, and nothing else.

    Raises:
        LorakitError: Names those that it lacks, has twice, or should not have.
    """
    trained = trainable_parameters(model)
    held = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    problems = [
        f"{name} is {'not in' if not held[id(parameter)] else 'more than once in'} the optimiser"
        for name, parameter in trained.items()
        if held[id(parameter)] != 1
    ]
    strangers = held.keys() - {id(parameter) for parameter in trained.values()}
    if strangers:
        names = {id(parameter): canonical(name) for name, parameter in model.named_parameters()}
        shown = sorted(names.get(one, "a tensor that the model does not have") for one in strangers)
        problems.append(f"{shown[0]} is in the optimiser, and is not to be trained")
    if problems:
        raise LorakitError(*(f"{problem}: {_BUG}" for problem in problems))


class Watch:
    """Looks at the first steps with a `TELLING` rate: what is trained moves, what is frozen does not.

    The rule: after `STEPS` such steps, each trained tensor must have had a gradient that is not all zero, and the
    element whose gradient was the largest must have changed in the same step. It is an error when

    - a tensor that a method or the head added took no part in the loss (its gradient is None, not zero);
    - all tensors that the methods added had gradients of zero alone;
    - no trained tensor at all moved;
    - a frozen tensor has a gradient, or was written to (its version counter, which each write in place raises, moved).

    A warning, since a sound run may do it, is: a tensor of the base that the task does not use (full fine-tuning), one
    of an expert to which nothing was routed, a single gradient of zero (a unit that never fires), and a tensor that
    stays as it is because the rate is so small, as in a long warmup, that float32 rounds its steps away.

    A shorter run is not judged. It costs one pass over the trained gradients, until each has moved once.

    Args:
        model: Unwrapped.
        added: Canonical names of the trained tensors that the methods added.
        of_base: Those of the base's own tensors.
        say: For warnings.
    """

    def __init__(
        self, model: nn.Module, added: Collection[str], of_base: Collection[str], say: Callable[[str], None]
    ) -> None:
        self._say, self._added, self._of_base = say, set(added), set(of_base)
        self._waiting = trainable_parameters(model)
        self._count, self._moved = len(self._waiting), 0
        self._zero: set[str] = set()
        self._still: set[str] = set()
        self._peaks: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad and not p.is_meta}
        self._versions = {name: parameter._version for name, parameter in self._frozen.items()}
        self._left = STEPS

    def before(self) -> None:
        """Note where each gradient is the largest; called with finite gradients, in front of the optimiser's step."""
        self._peaks = {}
        for name, parameter in self._waiting.items() if self._left else ():
            if parameter.grad is not None:
                size, index = _flat(parameter.grad).abs().max(0)
                self._peaks[name] = (size, index, _flat(parameter)[index].clone())

    def after(self) -> None:
        """See what has moved there, and judge when the time has come.

        Raises:
            LorakitError: Names what was not trained, or what should not have been.
        """
        if not self._left:
            return
        moved = {name: _flat(self._waiting[name])[i] != value for name, (_, i, value) in self._peaks.items()}
        if moved:
            sizes = torch.stack([size.float() for size, _, _ in self._peaks.values()]).tolist()
            for name, size, changed in zip(moved, sizes, torch.stack(list(moved.values())).tolist(), strict=True):
                (self._still if size else self._zero).add(name)
                if size and changed:
                    del self._waiting[name]
                    self._moved += 1
        self._peaks = {}
        self._left -= 1
        if not self._left:
            self._judge()
            self._check_frozen()
            self._waiting = {}

    def _check_frozen(self) -> None:
        """Whether the frozen tensors are as they were."""
        for name, parameter in self._frozen.items():
            if parameter.grad is not None or parameter._version != self._versions[name]:
                what = "got a gradient" if parameter.grad is not None else "was changed"
                raise LorakitError(f"{canonical(name)} is frozen, and {what}: {_BUG}")

    def _judge(self) -> None:
        if self._count and not self._moved:
            raise LorakitError(f"none of the {self._count} trained tensors moved in {STEPS} steps: {self._hint()}")
        zero = {name for name in self._waiting if name in self._zero - self._still}
        apart = {name for name in self._waiting if name not in self._zero | self._still}
        rare = {name for name in zero | apart if name in self._of_base or ".experts." in name}
        if self._added and self._added <= zero:
            raise LorakitError(f"all gradients of the method's tensors were zero in the first {STEPS} steps: {_BUG}")
        if apart - rare:
            raise LorakitError(
                f"{_names(apart - rare)} took no part in the loss in the first {STEPS} steps, and would stay as they "
                "are: the model does not use the modules that they belong to; leave them out of method.targets"
            )
        if zero or apart:
            self._say(f"warning: no gradient in the first {STEPS} steps: {_names(zero | apart)}")
        if still := self._waiting.keys() - zero - apart:
            self._say(f"warning: not moved in the first {STEPS} steps, the rate being so small: {_names(still)}")

    def _hint(self) -> str:
        if self._still:
            return "train.lr is so small that float32 rounds the steps away"
        return f"they got no gradient; {_BUG}"


def _flat(tensor: Tensor) -> Tensor:
    """One dimension, of the whole tensor where devices have a part each."""
    return whole(tensor.detach()).reshape(-1)


def _names(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(first) + more


def check_written(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whether a file, read back, holds the very bytes of the tensors that it was made from.

    Args:
        file: In safetensors' format.
        tensors: By name; on any device.

    Raises:
        CheckpointError: It does not, or cannot be read.
    """
    try:
        with safe_open(file, "pt") as read:
            names = set(read.keys())
            bad = sorted(names ^ tensors.keys())
            bad += [name for name in names & tensors.keys() if not _same_bytes(read.get_tensor(name), tensors[name])]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: what was just written cannot be read back: {error}") from error
    if bad:
        raise CheckpointError(
            f"{file}: {bad[0]}, read back, is not what was written; the disk, or the memory, is at fault"
        )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    other = other.detach().cpu().contiguous()
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))

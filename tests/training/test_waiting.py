"""A step must not wait for the GPU: each time, the GPU waits too, for what the host sends next.

No GPU is needed to see it: what asks a tensor for its numbers, or has a shape that depends on them, is known by name.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_runs import small_recipe
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import lorakit
from lorakit.data.batches import Limit, step_rows
from lorakit.kernels import as_on_gpu
from lorakit.packing import Packing
from lorakit.progress import Silent
from lorakit.training import loop
from lorakit.training.setup import set_up

ATEN = torch.ops.aten
ASKING = {
    ATEN._local_scalar_dense.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.equal.default,
    ATEN._unique2.default,
    ATEN.repeat_interleave.Tensor,
}
"""`float`, `bool` and `item` are the first of them."""
PACKAGES = tuple(str(Path(package.__file__ or "").parent) for package in (lorakit, transformers))
BY_MASK = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}


class Waits(TorchDispatchMode):  # type: ignore[misc]
    """Notes who asks for numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.who: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        mask = func in BY_MASK and any(one is not None and one.dtype == torch.bool for one in args[1])
        if func in ASKING or mask:
            self.who.append(next(frame.name for frame in reversed(traceback.extract_stack()) if _counts(frame)))
        return func(*args, **(kwargs or {}))


def _counts(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(PACKAGES)


def test_what_asks_is_noticed() -> None:
    numbers = torch.arange(3.0)
    asking: list[Callable[[], Any]] = [
        lambda: float(numbers[0]),
        lambda: bool((numbers > 0).all()),
        lambda: numbers.tolist() and numbers[0].item(),
        lambda: numbers[numbers > 1],
        lambda: numbers.clone().masked_select(numbers > 1),
        numbers.nonzero,
        lambda: torch.equal(numbers, numbers),
        lambda: numbers.clone().index_put_((numbers > 1,), torch.tensor(0.0)),
    ]
    for ask in asking:
        with Waits() as waits, pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "_counts", lambda _: True)
            ask()
        assert waits.who


@pytest.mark.parametrize(
    ("base", "kind"),
    [("llama", "completion"), ("gpt2", "completion"), ("bert", "classification"), ("roberta", "regression")],
)
def test_a_step_asks_for_its_loss_and_its_norm(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, base: str, kind: str
) -> None:
    """For nothing else: not transformers either, which would read each mask."""
    run = set_up(small_recipe(tmp_path, tiny(base), kind), tmp_path / "run", Silent())
    run.trainee.limit, run.trainee.watch = Limit(rows=4), None  # the audit looks at the first steps alone
    for group in run.trainee.optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    collate, packed = loop.collate, []

    def on_the_host(*given: Any) -> Any:
        with _disable_current_modes():
            return collate(*given)

    def counting(self: Packing, given: torch.Tensor) -> torch.Tensor:
        packed.append(True)
        return pack(self, given)

    pack = Packing.pack
    monkeypatch.setattr(loop, "collate", on_the_host)
    monkeypatch.setattr(Packing, "pack", counting)
    train, data = run.recipe.train, run.train.encoded
    steps = step_rows(train.seed, len(data), train.batch_size, 2)
    run.trainee.model.train()
    with Waits() as waits, as_on_gpu():
        assert len(list(loop.optimise(run.trainee, data, steps, train, [0.01] * 2))) == 2
    assert packed
    assert waits.who == ["_accumulate", "_clip"] * 2

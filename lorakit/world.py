"""The processes that work on one run together: who does what, and how they agree.

A process that stands alone is a world of one: nothing below then talks to anybody.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from lorakit.errors import LorakitError, RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """What a process does in one round of shared work.

    Args:
        batch: Its part.
        index: Of the batch among all; None for a batch that another process has done too, and that must not count.
        round: What all processes do in this round, together.
    """

    batch: list[int]
    index: int | None
    round: list[int]


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Args:
        rank: This process's number, from 0.
        size: How many there are.
        device: For what they tell one another.
        sharded: Whether each holds a part of the model only, so that all must run every forward pass together.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    sharded: bool = False

    def most(self, value: int) -> int:
        """The largest value that any process has."""
        if self.size == 1:
            return value
        votes = torch.tensor(value, dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return int(votes)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def from_first(self, action: Callable[[], T]) -> T:
        """What the first process finds: only it needs the run directory.

        Raises:
            LorakitError: The first process's, in all: the others would wait for it else.
        """
        if self.size == 1:
            return action()
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = action()
            except LorakitError as error:
                told[1] = error
        torch.distributed.broadcast_object_list(told, src=0, device=self.device)
        if told[1] is not None:
            raise told[1]
        found: T = told[0]
        return found

    def wait(self) -> None:
        """Until all are here."""
        self.most(0)

    def turns(self, batches: Sequence[list[int]], *, together: bool = False) -> Iterator[Turn]:
        """This process's part of some batches: all have equally many turns, so that they may agree on leaving early.

        Args:
            batches: The same in every process.
            together: Every process does all batches: for work whose number of forward passes nobody knows beforehand,
                where the model is sharded. Those of the first process count.
        """
        if together and self.sharded:
            for index, batch in enumerate(batches):
                yield Turn(batch, index if self.rank == 0 else None, batch)
            return
        for start in range(0, len(batches), self.size):
            done = [one for batch in batches[start : start + self.size] for one in batch]
            mine = start + self.rank
            if mine < len(batches):
                yield Turn(batches[mine], mine, done)
            else:  # a sharded model's forward pass needs all
                yield Turn(batches[-1][:1], None, done)


ALONE = World()
_PATIENCE = timedelta(hours=3)
"""How long processes wait for one that downloads a base or computes slow metrics; NCCL's own limit is ten minutes."""


def join() -> World:
    """Meet the other processes that a launcher has started, if any.

    Raises:
        RecipeError: There are more of them on this machine than it has GPUs.
    """
    from accelerate import PartialState

    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if on_gpu and local >= torch.cuda.device_count():
        raise RecipeError(
            f"process {local + 1} on this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start at most as many processes (CUDA_VISIBLE_DEVICES= trains on the CPU)"
        )
    # Told, and not asked: without a GPU accelerate would start several processes as so many single ones.
    state = PartialState(cpu=not on_gpu, timeout=_PATIENCE)
    return World(state.process_index, state.num_processes, state.device)


def leave(world: World) -> None:
    """Part from the other processes, once all have done their work."""
    if world.size > 1:
        world.wait()
        torch.distributed.destroy_process_group()

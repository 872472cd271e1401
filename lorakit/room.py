"""Batches that fit the memory: one for which it runs out is halved, and so are those after it."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from lorakit.errors import LorakitError

T = TypeVar("T")


class Room:
    """How many pieces the batches of some kinds of work have to be cut into, as far as is known.

    Attributes:
        pieces: Kind of work → pieces; a kind that is not there has always fitted.
    """

    def __init__(self) -> None:
        self.pieces: dict[str, int] = {}

    def each(self, kind: str, batch: list[int], work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """Do some work on a batch, in pieces where it must be.

        Args:
            kind: Of work: what is found out about it holds from then on.
            batch: Indices of rows.
            work: On a part of them.

        Yields:
            (the part, what came of it), in the batch's order.

        Raises:
            LorakitError: Not even a single row fits.
        """
        size = -(-len(batch) // self.pieces.get(kind, 1))
        start = 0
        while start < len(batch):
            piece = batch[start : start + size]
            try:
                result = work(piece)
            except torch.OutOfMemoryError as error:
                if len(piece) == 1:
                    raise LorakitError(
                        f"{kind}: out of memory with a single row; try a smaller task.max_length, or, where text is "
                        "generated, smaller generate.max_new_tokens or generate.beams"
                    ) from error
            else:
                start += len(piece)
                yield piece, result
                continue
            torch.cuda.empty_cache()  # only here is what the failed pass held, with its error, gone
            size = -(-len(piece) // 2)
            self.pieces[kind] = -(-len(batch) // size)

    def notes(self) -> list[str]:
        """What a person should know; nothing where everything fitted."""
        return [f"{kind}: memory ran out; batches are cut into {pieces} pieces" for kind, pieces in self.pieces.items()]

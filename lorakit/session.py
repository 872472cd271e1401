"""A finished run, opened to be evaluated, to predict, to be merged or exported."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from lorakit.checkpoint import Opened, open_run
from lorakit.data.collate import collate
from lorakit.data.encode import encode
from lorakit.data.items import Encoded
from lorakit.data.rows import Row
from lorakit.errors import CheckpointError, DataError
from lorakit.evaluate import (
    Evaluation,
    Subject,
    evaluate,
    predict,
    resolve_precision,
)
from lorakit.model import Base, Prepared
from lorakit.objective import objective
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.splits import SplitData, encode_for, read_split, token_limit

PROBE_ROWS = 16
"""Real rows on which a merge compares logits."""
SEEDED_TOKENS = 24
"""Of the longest row that is made up where there are no real ones."""


@dataclass(frozen=True)
class Session:
    """A run, ready to look at rows.

    Args:
        opened: The run.
        subject: Its model on the device.
    """

    opened: Opened
    subject: Subject

    @property
    def recipe(self) -> Recipe:
        """The run's resolved recipe."""
        return self.opened.recipe

    def read(self, split: str, progress: Progress) -> SplitData:
        """Read and tokenise a split.

        Raises:
            DataError: The task has no such split, or its file is bad.
        """
        known = self.recipe.task.splits
        if lacking := None if known else self.recipe.task.missing():
            raise DataError(lacking)
        if split not in known:
            raise DataError(f"--split {split}: this task has {', '.join(known)}")
        return read_split(self.recipe.task, split, self.opened.prepared, progress)

    def evaluate(self, data: SplitData, progress: Progress) -> Evaluation:
        """The task's metrics on a split.

        Raises:
            DataError: The split has no labels.
        """
        if not data.labelled:
            raise DataError(f"{data.name}: this split has no labels to compare with; use predict")
        return evaluate(self.subject, self.recipe.task, data, self.recipe.generate, progress)

    def predict(self, data: SplitData, progress: Progress) -> Evaluation:
        """Predictions for a split that may have no labels."""
        return predict(self.subject, self.recipe.task, data, self.recipe.generate, progress)

    def of_rows(self, rows: list[Row], name: str = "input") -> SplitData:
        """Rows that a person gave, tokenised."""
        prepared = self.opened.prepared
        if self.recipe.task.kind == "generation":  # only the prompts are read, and those as they are needed
            return SplitData(name, rows, encode([], prepared.tokenizer, 1))
        limit = token_limit(self.recipe.task, prepared)
        return SplitData(name, rows, encode_for(prepared, rows, limit))


def open_session(
    run: Path, checkpoint: str | None = None, *, base_only: bool = False, merged: Path | None = None
) -> Session:
    """Open a run for evaluation or prediction.

    Args:
        run: The run directory.
        checkpoint: "step-N", or None for the published adapter.
        base_only: The bare base instead of the adapted model.
        merged: A merged directory instead of base and adapter.

    Raises:
        CheckpointError: The run, the checkpoint or the merged directory is missing or damaged.
    """
    if merged is not None:
        if not (merged / "config.json").is_file():
            raise CheckpointError(f"--merged {merged}: not a merged model: it has no config.json")
        opened = open_run(run, base_only=True, base=Base(base=str(merged.resolve()), dtype="auto"))
    else:
        opened = open_run(run, checkpoint, base_only=base_only)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared, recipe = opened.prepared, opened.recipe
    prepared.model.to(device)
    loss = objective(recipe.task.head, prepared.model)
    precision = resolve_precision(recipe, device)
    return Session(opened, Subject(prepared.model, prepared.tokenizer, loss, device, precision, prepared.slots))


def probe_batches(opened: Opened) -> list[dict[str, Tensor]]:
    """Model inputs of a few real rows, validation's first; of made-up ids where the task has no rows.

    Raises:
        DataError: The task's files are not there any more.
    """
    task, tokenizer = opened.recipe.task, opened.prepared.tokenizer
    if not task.has_rows:
        return seeded_inputs(opened.prepared)
    split = next(name for name in task.splits if name.startswith("validation"))
    rows = list(islice(task.read(split).rows, PROBE_ROWS))
    encoded = encode_for(opened.prepared, rows, token_limit(task, opened.prepared))
    return probe_inputs(encoded, tokenizer.pad_token_id)


def seeded_inputs(prepared: Prepared) -> list[dict[str, Tensor]]:
    """Token ids that are a function of the vocabulary's size alone, a row a batch, of lengths from 8 on."""
    generator = torch.Generator().manual_seed(0)
    special = set(prepared.tokenizer.all_special_ids)
    known = min(len(prepared.tokenizer), prepared.model.config.vocab_size)
    ids = torch.tensor([index for index in range(known) if index not in special])
    longest = min(SEEDED_TOKENS, prepared.max_tokens or SEEDED_TOKENS)
    lengths = [min(longest, 8 + row) for row in range(PROBE_ROWS)]
    chosen = [ids[torch.randint(len(ids), (1, length), generator=generator)] for length in lengths]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in chosen]


def probe_inputs(encoded: Encoded, pad_id: int) -> list[dict[str, Tensor]]:
    """Inputs of the first rows, one batch each, so that no padding gets in the way of comparing logits."""
    return [collate([item], pad_id).inputs for item in encoded.items[:PROBE_ROWS]]

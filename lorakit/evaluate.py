"""Evaluation: the loss and the task's metrics of a split, and what the model said about every row."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from lorakit.arch import max_tokens
from lorakit.choices import likelihoods
from lorakit.data.batches import Lengths, Limit, by_length
from lorakit.data.collate import Batch, collate
from lorakit.data.encode import cut_front, end_ids, prompt_ids, with_prefix
from lorakit.data.rows import ChoiceRow, Row, distinct_prompts
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.errors import RecipeError
from lorakit.generate import batch_limit, generate
from lorakit.objective import Objective
from lorakit.progress import Progress
from lorakit.recipe import Generate, Recipe
from lorakit.records import records
from lorakit.room import Room
from lorakit.splits import SplitData, token_limit
from lorakit.tasks.base import Prediction, Scores, Task
from lorakit.world import ALONE, Turn, World

BATCH = Limit(rows=64, tokens=8192)
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """A model to be evaluated.

    Args:
        model: Unwrapped.
        tokenizer: Its tokenizer.
        objective: The task's loss.
        device: Where the model is.
        precision: "float32", or the dtype to autocast to.
        slots: Places of a trained prefix in every row.
        world: The processes that share the work; each has the same model, and gets the whole result.
        room: Cuts batches for which memory runs out. Not where the model is sharded: all would have to cut alike.
    """

    model: Any
    tokenizer: Any
    objective: Objective
    device: torch.device
    precision: str = "float32"
    slots: Slots = NO_SLOTS
    world: World = ALONE
    room: Room = field(default_factory=Room)

    def each(self, kind: str, batch: list[int], work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
        """See `Room.each`."""
        return iter([(batch, work(batch))]) if self.world.sharded else self.room.each(kind, batch, work)

    @property
    def max_tokens(self) -> int | None:
        """Longest input that the model has positions for."""
        return max_tokens(self.model.config)

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model computes."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.precision))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode and no gradients, with the model's mode put back after."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.model.train(was_training)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        split: Its name.
        metrics: loss and the task's metrics.
        predictions: One per row, or per distinct prompt.
        records: For people and files: input, prediction and reference(s) of each prediction.
        notes: What the task says beside the metrics.
        quick: Whether the task's slow metrics were left out.
    """

    split: str
    metrics: dict[str, float]
    predictions: list[Prediction]
    records: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    quick: bool = False

    def complete(self, task: Task, rows: Sequence[Row], progress: Progress) -> "Evaluation":
        """With the slow metrics: of the same predictions."""
        if not self.quick:
            return self
        scores = _scores(task, rows, self.predictions, progress)
        loss = {name: value for name, value in self.metrics.items() if name == "loss"}
        return replace(self, metrics=loss | scores.values, notes=scores.notes, quick=False)


@dataclass(frozen=True)
class Part:
    """How much of an evaluation is wanted while a model trains.

    Args:
        rows: The first rows alone; None for all. Where text is generated, the loss is that of all rows all the same: it
            costs little beside generation, and chooses the best step.
        quick: Leave out the task's slow metrics; `Evaluation.complete` adds them.
    """

    rows: int | None = None
    quick: bool = False


WHOLE = Part()


def resolve_precision(recipe: Recipe, device: torch.device) -> str:
    """The dtype to compute in: the recipe's.

    auto: the base's, where the recipe sets it to a 16-bit one, else bfloat16 on CUDA and float32 on CPU. A base in 4
    bits computes in bfloat16.

    Raises:
        RecipeError: float16 on a CPU.
    """
    key, precision = "train.precision", str(recipe.train.precision)
    if recipe.model.quantize is not None:
        return "bfloat16"
    if precision == "auto" and recipe.model.dtype in ("bfloat16", "float16"):
        key, precision = "model.dtype", recipe.model.dtype
    if precision == "float16" and device.type == "cpu":
        raise RecipeError(f"{key}: float16 needs a GPU; use bfloat16 or float32 on a CPU")
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def evaluate(
    subject: Subject,
    task: Task,
    data: SplitData,
    settings: Generate | None,
    progress: Progress,
    part: Part = WHOLE,
) -> Evaluation:
    """The loss and the task's metrics on a split.

    Args:
        subject: The model.
        task: Scores the predictions.
        data: The split.
        settings: How to generate, where the task does.
        progress: Shown while it runs.
        part: How much of it is wanted.
    """
    whole, data = data, data.first(part.rows)
    if task.kind != "generation":
        whole = data
    before = subject.room.notes()
    with subject.evaluating():
        total, count, outputs = _forward(subject, whole, progress, keep=task.kind != "generation")
        if task.kind == "generation":
            assert settings is not None
            predictions = _generations(subject, task, data.rows, settings, progress)
        else:
            predictions = [_prediction(task, outputs[i]) for i in range(len(data.rows))]
    metrics = {"loss": total / count} if count else {}
    notes: tuple[str, ...] = ()
    if data.labelled:
        scores = _scores(task, data.rows, predictions, progress, part.quick)
        metrics, notes = metrics | scores.values, scores.notes
    cut = subject.room.notes()
    for line in cut if cut != before else ():
        progress.say(line)
    quick = part.quick and bool(task.slow_metrics)
    return Evaluation(data.name, metrics, predictions, records(task, data.rows, predictions), notes, quick)


def _scores(
    task: Task, rows: Sequence[Row], predictions: Sequence[Prediction], progress: Progress, quick: bool = False
) -> Scores:
    """The task's metrics, with a bar where some of them are slow."""
    if quick or not task.slow_metrics - set(task.not_computed()):
        return task.score(rows, predictions, quick=quick)
    with progress.bar("score", len(predictions), "predictions") as bar:
        scores = task.score(rows, predictions)
        bar.advance(len(predictions))
    return scores


def predict(subject: Subject, task: Task, data: SplitData, settings: Generate | None, progress: Progress) -> Evaluation:
    """Predictions alone: as `evaluate`, for rows that may have no labels."""
    if data.labelled or task.kind != "generation":
        return evaluate(subject, task, data, settings, progress)
    assert settings is not None
    with subject.evaluating():
        predictions = _generations(subject, task, data.rows, settings, progress)
    return Evaluation(data.name, {}, predictions, records(task, data.rows, predictions))


def _forward(
    subject: Subject, data: SplitData, progress: Progress, keep: bool
) -> tuple[float, int, dict[int, torch.Tensor]]:
    """Summed loss, targets, and (if asked) each row's logits; of choices their log-likelihoods."""
    if isinstance(data.rows[0], ChoiceRow):
        return _likelihoods(subject, data, progress)
    found: dict[int, tuple[float, dict[int, torch.Tensor]]] = {}
    items = data.encoded.items

    def look(rows: list[int]) -> tuple[float, Any]:
        batch = collate([items[i] for i in rows], subject.tokenizer.pad_token_id).to(subject.device)
        loss, logits = subject.objective(subject.model, batch)
        return float(loss), logits.cpu() if keep else ()

    with progress.bar(f"evaluate {data.name}", len(items)) as bar:
        for turn in subject.world.turns(by_length(data.encoded.lengths, BATCH)):
            seen = list(subject.each("evaluation", turn.batch, look))
            if turn.index is not None:
                kept = {items[i].row: row for rows, (_, part) in seen for i, row in zip(rows, part, strict=keep)}
                found[turn.index] = sum(loss for _, (loss, _) in seen), kept
            bar.advance(len(turn.round))
    parts = {index: part for of_one in subject.world.gather(found) for index, part in of_one.items()}
    total = sum(parts[index][0] for index in sorted(parts))  # in one order, however many processes there are
    outputs = {row: logits for _, of_batch in parts.values() for row, logits in of_batch.items()}
    return (total, int(data.encoded.targets.sum()), outputs) if data.labelled else (0.0, 0, outputs)


def _likelihoods(subject: Subject, data: SplitData, progress: Progress) -> tuple[float, int, dict[int, torch.Tensor]]:
    items = data.encoded.items
    rows = [row for row in data.rows if isinstance(row, ChoiceRow)]

    def cut(lengths: Lengths) -> Iterator[Turn]:
        return subject.world.turns(by_length(lengths, BATCH))

    def logits(batch: Batch) -> torch.Tensor:
        def look(rows: list[int]) -> torch.Tensor:
            return subject.objective(subject.model, batch.rows(rows).to(subject.device))[1]

        every = list(range(len(batch.labels)))
        return torch.cat([part for _, part in subject.each("evaluation", every, look)])

    with progress.bar(f"evaluate {data.name}", len(items)) as bar:
        found = likelihoods(rows, items, subject.tokenizer, logits, cut, bar.advance)
    parts = subject.world.gather(found)
    outputs = {
        item.row: torch.tensor([one.choices for one in of_row], dtype=torch.float64).sum(0)
        for item, *of_row in zip(items, *parts, strict=True)
    }
    learned = sum(one.learned for of_one in parts for one in of_one)
    return -learned, int(data.encoded.targets.sum()), outputs


def _generations(
    subject: Subject, task: Task, rows: Sequence[Row], settings: Generate, progress: Progress
) -> list[Prediction]:
    """One text per distinct prompt; prompts are cut as in training, and by what the model has positions for."""
    tokenizer, limit = subject.tokenizer, _prompt_limit(subject, task, settings)
    whole = [prompt_ids(row, tokenizer) for row, _ in distinct_prompts(rows)]
    prompts = [
        with_prefix(cut_front(prompt, len(prompt) - limit, tokenizer), subject.slots, tokenizer) for prompt in whole
    ]
    if cut := sum(len(prompt) > limit for prompt in whole):
        progress.say(
            f"generate: {cut:,} of {len(whole):,} prompts lose their front: they have more than {limit:,} tokens"
        )
    ends, texts = end_ids(rows[0], tokenizer), dict[int, str]()
    room = (subject.max_tokens or sys.maxsize) - settings.max_new_tokens
    lengths = np.array([min(len(prompt), room) + settings.max_new_tokens for prompt in prompts], dtype=np.int64)

    def say(batch: list[int]) -> list[str]:
        return generate(subject.model, tokenizer, [prompts[i] for i in batch], settings, None, ends)

    with progress.bar("generate", len(prompts), "prompts") as bar:
        for turn in subject.world.turns(by_length(lengths, batch_limit(settings)), together=True):
            for batch, said in subject.each("generation", turn.batch, say):
                texts |= dict(zip(batch, said, strict=True)) if turn.index is not None else {}
            bar.advance(len(turn.round))
    every = {index: text for of_one in subject.world.gather(texts) for index, text in of_one.items()}
    return [every[index] for index in range(len(prompts))]


def _prompt_limit(subject: Subject, task: Task, settings: Generate) -> int:
    """Tokens that a prompt may have beside its prefix and infix; what `generate` itself would cut is cut here."""
    limit = token_limit(task, subject)
    if subject.slots.count and subject.max_tokens is not None:  # generate would cut a prefix with the front
        limit = min(limit, subject.max_tokens - settings.max_new_tokens)
    if limit <= subject.slots.count:
        raise RecipeError(
            f"generate.max_new_tokens: {settings.max_new_tokens} leaves no room for a prompt beside the "
            f"{subject.slots.count} places of the prefix"
        )
    return limit - subject.slots.count


def _prediction(task: Task, logits: torch.Tensor) -> Prediction:
    return float(logits[0]) if task.kind == "regression" else int(logits.argmax())

"""The values that `init` chooses, each with its reason.

The sources are Hu et al. 2021 (the LoRA paper), Dettmers et al. 2023 (QLoRA), and Schulman et al. 2025 (LoRA Without
Regret).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.scaffold.lengths import Lengths, share_below

LADDER = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Values for `max_length`; longer rows are rare, and cost memory with every batch that holds one."""
_EPOCHS = {False: ((1_000, 20), (10_000, 10), (100_000, 5)), True: ((500, 5), (20_000, 3), (200_000, 2))}
_LAST_EPOCHS = {False: 3, True: 1}
_FEW_STEPS = 100


@dataclass(frozen=True)
class Setting:
    """One line of a recipe.

    Args:
        key: Its key.
        value: Plain data.
        why: The comment beside it.
    """

    key: str
    value: Any
    why: str = ""


def method(decoder: bool, rows: int | None) -> list[Setting]:
    """LoRA's values.

    Args:
        decoder: Whether the base is one.
        rows: To train on, where known.
    """
    lora = Setting("name", "lora")
    if not decoder:
        return [
            lora,
            Setting("rank", 8, "as in the LoRA paper for RoBERTa"),
            Setting("alpha", 16, "the update is scaled by alpha / rank; as in the LoRA authors' scripts for RoBERTa"),
            Setting("dropout", 0.0, "likewise; the base's own dropout stays on"),
            Setting("targets", ["q", "v"], "the LoRA paper's choice for encoders; all-linear adapts the MLPs too"),
        ]
    rank = 64 if rows is not None and rows > 50_000 else 16
    room = "many rows need capacity" if rank == 64 else "enough for some ten thousand rows, more rows want 64 to 256"
    return [
        lora,
        Setting("rank", rank, f"{room} (LoRA Without Regret)"),
        Setting("alpha", 32, "with it the best lr hardly depends on the rank (LoRA Without Regret)"),
        Setting("dropout", 0.05, "against overfitting; QLoRA takes 0.05 to 0.1"),
        Setting("targets", ["all-linear"], "the MLPs matter most (LoRA Without Regret, QLoRA); the LoRA paper: [q, v]"),
    ]


def train(decoder: bool, rows: int | None) -> list[Setting]:
    """The schedule.

    Args:
        decoder: Whether the base is one.
        rows: To train on; None where unknown.
    """
    batch = 16 if rows is None or rows >= 1_000 else 8
    epochs = _epochs(decoder, rows)
    each = None if rows is None else -(-rows // batch)
    steps = None if each is None else each * epochs
    how_many = "" if each is None else f"{rows:,} rows / {batch} = {each:,} steps each, {steps:,} in all; "
    larger = "32 at most: with large batches LoRA falls behind full fine-tuning (LoRA Without Regret)"
    settings = [
        Setting("epochs", epochs, how_many + _why_epochs(decoder)),
        Setting("batch_size", batch, larger),
        _lr(decoder, steps),
        Setting("schedule", "linear", "down to 0, as in the LoRA paper"),
        Setting(
            "warmup",
            {"ratio": 0.03 if decoder else 0.06},
            "of all steps, as QLoRA" if decoder else "of all steps, as the paper",
        ),
        Setting("weight_decay", 0.0 if decoder else 0.1, "as QLoRA" if decoder else "as in the LoRA authors' scripts"),
    ]
    if each is not None and epochs <= 3 and each >= 400:
        often = max(100, each // 400 * 100)
        settings.append(Setting("eval_every", often, "steps: a few looks per epoch; the best one is published"))
        settings.append(Setting("save_every", often, "as often, so that the best one is kept"))
    else:
        settings.append(Setting("eval_every", "epoch", "the best epoch is published"))
    return settings


def eval_limit(validation_rows: int | None) -> list[Setting]:
    """A limit for evaluations that generate text, where validation is large."""
    if validation_rows is not None and validation_rows <= 200:
        return []
    return [Setting("eval_limit", 200, "rows per evaluation, since generating is slow; the last one takes all")]


def max_length(lengths: Lengths | None, positions: int | None) -> Setting:
    """The limit that nearly all rows keep.

    Args:
        lengths: Of the training rows; None where unknown.
        positions: Of the base; None for no limit.
    """
    if lengths is None:
        return Setting("max_length", min(512, positions or 512), "tokens per row; longer ones are cut, and counted")
    longest, most = lengths.rows[-1], share_below(lengths.rows, 0.99)
    wanted = longest if longest <= 2 * most else most
    chosen = min(next((size for size in LADDER if size >= wanted), LADDER[-1]), positions or LADDER[-1])
    cut = lengths.longer_than(chosen)
    how = "" if lengths.counted else ", by an estimate"
    beyond = f"; {max(0.1, 100 * cut):.1f} % of the rows are longer and will be cut" if cut else ""
    return Setting(
        "max_length", chosen, f"tokens; 99 % of the rows have at most {most:,}, the longest {longest:,}{how}{beyond}"
    )


def max_new_tokens(lengths: Lengths | None) -> Setting:
    """Room for nearly every answer."""
    if lengths is None:
        return Setting("max_new_tokens", 128, "where generation stops at the latest")
    most = share_below(lengths.targets, 0.95)
    chosen = next((size for size in LADDER if size >= most), LADDER[-1])
    return Setting("max_new_tokens", chosen, f"95 % of the answers have at most {most:,} tokens")


def _epochs(decoder: bool, rows: int | None) -> int:
    if rows is None:
        return 3 if decoder else 10
    return next((epochs for below, epochs in _EPOCHS[decoder] if rows < below), _LAST_EPOCHS[decoder])


def _why_epochs(decoder: bool) -> str:
    if decoder:
        return "the LoRA paper: 2 (GPT-3), 5 (GPT-2)"
    return "the LoRA paper: 25 to 80 on GLUE"


def _lr(decoder: bool, steps: int | None) -> Setting:
    if not decoder:
        return Setting("lr", 5e-4, "the LoRA paper's for RoBERTa-base (4e-4 to 5e-4)")
    if steps is not None and steps < _FEW_STEPS:
        return Setting("lr", 3e-4, "15 times that of full fine-tuning, for under 100 steps (LoRA Without Regret)")
    return Setting(
        "lr", 2e-4, "10 times that of full fine-tuning (LoRA Without Regret); the LoRA paper's for GPT-2, GPT-3"
    )


def classes(names: Sequence[str], counts: Sequence[int]) -> Setting:
    """The classes, with their shares.

    Args:
        names: In the order that they get.
        counts: Training rows of each.
    """
    largest = max(range(len(names)), key=lambda index: counts[index])
    share = 100 * counts[largest] / sum(counts)
    numbered = list(names) == [str(index) for index in range(len(names))]
    rename = "; their names may stand here, in this order" if numbered else ""
    return Setting("labels", list(names), f"{share:.0f} % of the rows are {names[largest]}{rename}")

"""The recipe's `train` section: how long, how fast, in what portions, and how often to look."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lorakit.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]  # what Accelerate knows


class Optimizer(Section):
    """AdamW (Loshchilov and Hutter 2019): the decay is decoupled from the gradient."""

    name: Literal["adamw", "adamw8bit"] = "adamw"
    """The algorithm; adamw8bit keeps its two running means in 8 bits (arXiv 2110.02861), of tensors from 4,096 elements
    on: a quarter of the memory. Needs bitsandbytes: pip install 'lorakit[qlora]'."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    lr_b_ratio: PositiveFloat | None = None
    """LoRA+ (arXiv 2402.12354): LoRA's B matrices, and all biases and norms, learn at `lr` times this; 16 is the
    authors' advice, with `lr` about halved. null: all at `lr`."""


class Warmup(Section):
    """How long the learning rate rises from 0 to `lr`; exactly one of the keys."""

    ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """A share of all optimiser steps."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Optimiser steps."""
    tokens: PositiveInt | None = None
    """Input tokens, padding not counted (the paper's GPT-3 runs warm up over 250,000)."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of ratio, steps and tokens, as in {{steps: 500}}; got {found}")
        return self


class InitFrom(Section):
    """Start from what another run has trained on the same base with the same method; the base stays frozen.

    The paper's MRPC, RTE and STS-B start from its MNLI adapter (section D.1).
    """

    run: Annotated[str, Field(min_length=1)]
    """The other run's directory; its published adapter is taken."""
    head: Literal["drop", "keep_matching"] = "drop"
    """The task's head: all of it new, or only those of its tensors new whose shapes differ there."""


class Train(Section):
    """The schedule. One step is one update of the parameters."""

    epochs: PositiveInt | None = None
    """Passes over the training rows; exactly one of `epochs` and `steps`."""
    steps: Annotated[PositiveInt | None, Field(validate_default=True)] = None
    """Optimiser steps; exactly one of `epochs` and `steps`."""
    batch_size: PositiveInt
    """Examples per optimiser step, over all devices."""
    micro_batch_size: Literal["auto"] | PositiveInt = "auto"
    """Examples per forward pass on one device; auto: what fits on CUDA, a fixed token budget on CPU."""
    optimizer: Optimizer = Optimizer()
    """The algorithm that updates the parameters."""
    lr: PositiveFloat
    """The highest learning rate, reached after the warmup."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after the warmup: down to 0 in a line or along a cosine, or constant."""
    warmup: Warmup | None = Warmup(ratio=0.06)
    """How long the learning rate rises first; null: not at all."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay of all trained matrices; biases and norms do not decay."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients with a larger norm are scaled down to it; null: never."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What to compute in; auto: bfloat16 on CUDA; on CPU what `model.dtype` says, else float32."""
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them again: less memory, about a third more time."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target's probability that is spread over all classes or tokens."""
    head_bias: Literal["zero", "mean"] = "zero"
    """Where the bias of a regression head begins: zero, as in the authors' code; mean: at the mean score of the
    training rows, which a head that begins at zero must find first (STS-B's scores go from 0 to 5)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the initial values, the order of the rows and the dropout."""
    eval_every: Literal["epoch"] | PositiveInt = "epoch"
    """Evaluate after each epoch, or every so many steps; the last step always evaluates."""
    save_every: Literal["epoch"] | PositiveInt = "epoch"
    """Save a checkpoint after each epoch, or every so many steps; the last step always saves."""
    select: str | None = None
    """What decides which evaluated step is published: `loss`, a metric of the task, or `last` for the last step;
    null: the loss for generation, the task's first metric else."""
    eval_limit: PositiveInt | None = None
    """Rows for evaluations during training; the last one takes all. Where text is generated it limits that alone: the
    loss, which chooses the best step, is that of all rows."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without a better `select`; null: never."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work. ddp: each holds the model; fsdp: each holds a part of it, put together
    block by block as it computes (FSDP2), for bases that no single GPU holds. The result is the same to rounding."""
    init_from: InitFrom | None = None
    """Another run to start from; null: from the base."""
    track: list[Tracker] = []
    """Experiment trackers that also get what metrics.jsonl gets; each needs its package. Tensorboard's files are in the
    run directory, below `tracking`; others may use the network. Cannot change the result."""

    @field_validator("steps")
    @classmethod
    def _one_length(cls, steps: int | None, info: ValidationInfo) -> int | None:
        # On the field and not on the section, as the other checks below: they speak although another key is wrong too.
        if "epochs" in info.data and (info.data["epochs"] is None) == (steps is None):
            both = "epochs and steps are both given; keep one and set the other to null"
            raise ValueError("give either epochs or steps" if steps is None else both)
        return steps

    @field_validator("micro_batch_size")
    @classmethod
    def _part_of_batch(cls, size: int | str, info: ValidationInfo) -> int | str:
        batch = info.data.get("batch_size")
        if isinstance(size, int) and batch is not None and size > batch:
            raise ValueError(f"{size} is more than the {batch} of batch_size; give {batch} or less, or auto")
        return size

    @field_validator("patience")
    @classmethod
    def _patience_for_what(cls, patience: int | None, info: ValidationInfo) -> int | None:
        if patience is not None and info.data.get("select") == "last":
            raise ValueError("select is last, so nothing is compared; select the loss or a metric, or set this to null")
        return patience

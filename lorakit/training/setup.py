"""Setting a run up: the model, the data, the optimiser and the devices that a recipe asks for."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorakit.checkpoint import ADAPTER, Provenance, head_of
from lorakit.data.batches import Limit, steps_per_epoch
from lorakit.errors import DataError, RecipeError
from lorakit.evaluate import Evaluation, Subject, resolve_precision
from lorakit.forecast import Predictor, batches_of
from lorakit.head_bias import regression_bias, start_at_mean
from lorakit.memory import checkpoint_gradients
from lorakit.meter import Meter
from lorakit.model import Prepared, prepare
from lorakit.modules import parameter_groups
from lorakit.nf4 import footprint, installed, require
from lorakit.objective import objective
from lorakit.packing import packing_in
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.runtime import peak_memory_bytes, versions
from lorakit.splits import SplitData, read_split
from lorakit.surgery import trainable_parameters
from lorakit.training.audit import check_optimizer, check_rows
from lorakit.training.history import History
from lorakit.training.loop import Trainee
from lorakit.training.optim import build_optimizer, outline_optimizer, total_steps
from lorakit.training.parallel import check_parallel, is_sharded, shard, wrap
from lorakit.training.state import TrainingState
from lorakit.world import World, join

CPU_OVERHEAD = 48
"""Tokens whose work takes as long as starting another micro-batch; measured on SmolLM2-135M and MiniLM."""
CPU_TOKENS = 2048
"""Padded tokens in a micro-batch on a CPU: large enough for full matrix products, small enough for any memory."""


@dataclass
class Run:
    """Everything that a run holds while it lasts.

    Args:
        recipe: Resolved: with the defaults that depend on the base.
        directory: The run directory.
        prepared: The model, unwrapped.
        trainee: What is trained.
        subject: The same model, to be evaluated.
        train: The training split.
        validation: The splits to evaluate on; selection uses the first.
        history: The log.
        progress: For the person.
        provenance: Of the adapter.
        state: Where the run stands.
        total: Steps of the whole run.
        meter: Of the memory.
        predicted: Bytes that the memory model expects; None where it cannot tell.
        latest: The last evaluation of this process, by split, with the step it was of.
    """

    recipe: Recipe
    directory: Path
    prepared: Prepared
    trainee: Trainee
    subject: Subject
    train: SplitData
    validation: list[SplitData]
    history: History
    progress: Progress
    provenance: Provenance
    state: TrainingState
    total: int
    meter: Meter
    predicted: int | None
    latest: dict[str, tuple[int, Evaluation]] = field(default_factory=dict)

    @property
    def world(self) -> World:
        """The processes that work on it."""
        return self.subject.world

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.world.device.type == "cpu"

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.world.rank == 0

    @property
    def select(self) -> str:
        """The metric that chooses the published step, or `last`."""
        first = "loss" if self.recipe.task.kind == "generation" else self.recipe.task.metrics[0]
        return self.recipe.train.select or first


def check_trackers(track: Sequence[str]) -> None:
    """Whether the trackers' packages are here: Accelerate would leave out, without a word, what is not.

    Raises:
        RecipeError: Says what to install.
    """
    from accelerate.tracking import get_available_trackers

    here = {str(name) for name in get_available_trackers()} if track else set()
    packages = {"tensorboard": "'lorakit[track]'", "comet_ml": "comet-ml"}
    missing = [
        f"train.track: {name} is not installed: pip install {packages.get(name, name)}"
        for name in track
        if name not in here
    ]
    if missing:
        raise RecipeError(*missing)


def make_accelerator(precision: str, track: Sequence[str], out: Path) -> Any:
    """Accelerate's entry point, for one run (its state is a singleton that remembers an earlier run's)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    AcceleratorState._reset_state()
    GradientState._reset_state()
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    return Accelerator(
        mixed_precision=names[precision],
        cpu=not torch.cuda.is_available(),
        log_with=list(track) or None,
        # Buffers are constants, and sending them in forward passes would keep one process from failing alone.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tracking")),
    )


def set_up(recipe: Recipe, out: Path, progress: Progress, meter: Meter | None = None) -> Run:
    """Load, read and prepare everything that the recipe names; nothing is written yet.

    Args:
        recipe: Validated.
        out: The run directory.
        progress: For the person.
        meter: Measures the memory from here on; stopped by the caller.

    Raises:
        LorakitError: The base, the data or the recipe's demands on them are wrong.
    """
    names = _validation_splits(recipe)
    world = join()
    world = replace(world, sharded=is_sharded(recipe, world))
    precision = resolve_precision(recipe, world.device)
    check_parallel(recipe, precision, world)
    accelerator = make_accelerator(precision, recipe.train.track, out)
    once = " (converted to safetensors the first time: about 20 s)" if recipe.model.base.endswith(".gguf") else ""
    progress.say(f"{recipe.name}: {recipe.model.base}{once}")
    predictor = Predictor(recipe, precision, partial(outline_optimizer, recipe.train), world.device.type == "cuda")
    meter = meter or Meter()
    meter.mark()  # all that is imported is imported now
    _fetch_once(recipe, world)
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    data = read_split(recipe.task, "train", prepared, progress, keep_rows=False)
    check_rows(data, prepared.tokenizer)
    if recipe.train.head_bias == "mean":
        start_at_mean(regression_bias(prepared.model, prepared.row, prepared.file_names), data.rows)
    validation = [read_split(recipe.task, split, prepared, progress) for split in names]
    trainee = _trainee(recipe, prepared, accelerator, world)
    total = total_steps(recipe.train, len(data.encoded))
    # Evaluation never smooths: `eval` must find the same loss, and runs be comparable.
    plain = objective(recipe.task.head, prepared.model)
    subject = Subject(prepared.model, prepared.tokenizer, plain, world.device, precision, prepared.slots, world)
    return Run(
        recipe=_resolved(recipe, prepared),
        directory=out,
        prepared=prepared,
        trainee=trainee,
        subject=subject,
        train=data,
        validation=validation,
        history=History(out, world.rank == 0),
        progress=progress,
        provenance=Provenance.of(prepared),
        state=TrainingState(),
        total=total,
        meter=meter,
        predicted=predictor.bytes(batches_of(recipe, data, validation, trainee.limit, total, world.size)),
    )


def _validation_splits(recipe: Recipe) -> list[str]:
    """What to evaluate on, once all that the recipe needs of this machine is known to be there.

    Raises:
        LorakitError: A package, a program or a split is missing.
    """
    task, select = recipe.task, recipe.train.select or ""
    check_trackers(recipe.train.track)
    if recipe.model.quantize:
        require("model.quantize")
    if recipe.train.optimizer.name == "adamw8bit":
        require("train.optimizer.name")
    if lacking := task.missing():
        raise DataError(lacking)
    if (why := task.not_computed().get(select)) is not None:
        raise RecipeError(f"train.select: {select} cannot be computed: {why}")
    names = [split for split in task.splits if split.startswith("validation")]
    if not names:
        raise DataError(
            "task: there is no validation split, and training is evaluated on one: name a file of other rows than "
            "train's (task.validation), or hold some of them back (task.held_out=0.1)"
        )
    return names


def _fetch_once(recipe: Recipe, world: World) -> None:
    """Let one process of each machine download or convert the base, which the others then find."""
    from accelerate import PartialState

    if world.size > 1:
        with PartialState().local_main_process_first():
            recipe.model.locate()


def _trainee(recipe: Recipe, prepared: Prepared, accelerator: Any, world: World) -> Trainee:
    """The model on its device, with its optimiser."""
    model, loss = prepared.model, objective(recipe.task.head, prepared.model, recipe.train.label_smoothing)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(model)
    if world.sharded:
        shard(model, prepared.row, world)
    else:
        model.to(accelerator.device)
    names_of = trainable_parameters(model)
    wrapped, optimizer = wrap(accelerator, model, build_optimizer(recipe.train, names_of), world.sharded)
    check_optimizer(model, optimizer)
    return Trainee(
        accelerator,
        wrapped,
        optimizer,
        loss,
        list(names_of.values()),
        prepared.tokenizer.pad_token_id,
        first_limit(recipe, model, world.device.type == "cpu", world.size),
        world,
    )


def first_limit(recipe: Recipe, model: Any, on_cpu: bool, devices: int = 1) -> Limit:
    """Rows or tokens of a micro-batch; on a GPU `auto` starts with the device's whole share of the step.

    Where blocks compute no padding (`packing`), nothing is gained by parting long rows from short ones.
    """
    size = recipe.train.micro_batch_size
    if size != "auto":
        return Limit(rows=size)
    return (
        Limit(tokens=CPU_TOKENS, overhead=None if packing_in(model) else CPU_OVERHEAD)
        if on_cpu
        else Limit(rows=-(-recipe.train.batch_size // devices))
    )


def _resolved(recipe: Recipe, prepared: Prepared) -> Recipe:
    """The recipe with what the base decided: with it and the base alone, the run can be rebuilt."""
    model = recipe.model.model_copy(update={"revision": prepared.located.revision or recipe.model.revision})
    return recipe.model_copy(update={"method": prepared.methods, "model": model, "task": recipe.task.resolve()})


def machine_of(run: Run) -> dict[str, Any]:
    """What can change the last bits of a result: recorded in checkpoints, compared when resuming."""
    found = versions()
    if run.recipe.model.quantize or run.recipe.train.optimizer.name == "adamw8bit":
        found["bitsandbytes"] = installed()
    return {
        "threads": torch.get_num_threads(),
        "device": run.trainee.accelerator.device.type,
        "versions": found,
    }


def plan_of(run: Run) -> dict[str, Any]:
    """How steps are cut into micro-batches, with dropout the masks depend on it, and how processes share them."""
    limit = run.trainee.limit
    way = "fsdp" if run.world.sharded else "ddp"
    return {**asdict(limit), "processes": run.world.size, "parallel": way}


def _quantised(prepared: Prepared) -> dict[str, Any] | None:
    """What the base takes in 4 bits, measured; None where it is whole."""
    if prepared.quantised is None:
        return None
    found = footprint(prepared.model)
    return {
        **{key: value for key, value in asdict(prepared.quantised).items() if key != "modules"},
        **asdict(found),
        "bits_per_parameter": round(found.bits, 4),
        "base_bits_per_parameter": round(found.base_bits, 4),
    }


def _cuts(run: Run) -> list[str]:
    """What had to be cut because memory ran out."""
    limit, first = run.trainee.limit, first_limit(run.recipe, run.prepared.model, run.on_cpu, run.world.size)
    halved = limit.rows is not None and limit.rows < (first.rows or sys.maxsize)
    training = [f"training: memory ran out; micro-batches have {limit.rows} rows"] if halved else []
    return [*training, *run.subject.room.notes()]


def report_of(run: Run, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What report.json holds."""
    splits = [run.train, *run.validation]
    seconds = run.state.seconds
    heads = () if run.recipe.task.head == "generation" else run.prepared.row.head
    return {
        "recipe": run.recipe.model_dump(mode="json"),
        "status": "complete",
        "kind": run.recipe.task.kind,
        "labels": list(run.recipe.task.labels),
        "metrics": {found.split: found.metrics for found in evaluations},
        "notes": {found.split: list(found.notes) for found in evaluations if found.notes},
        "init_from": run.state.init_from,
        "select": run.select,
        "best_step": run.state.best.step,
        "steps": run.state.step,
        "skipped_steps": run.state.skipped,
        "epochs": run.state.step / steps_per_epoch(len(run.train.encoded), run.recipe.train.batch_size),
        "parameters": parameter_groups(run.prepared.model, heads),
        "quantised": _quantised(run.prepared),
        "targets": {target: len(paths) for found in run.prepared.coverage for target, paths in found.items()},
        "rows": {data.name: len(data.rows) for data in splits},
        "data_revisions": {data.name: data.revision for data in splits if data.revision},
        "dropped": {data.name: data.dropped for data in splits},
        "truncated": {data.name: data.encoded.truncated for data in splits},
        "seconds": round(seconds, 2),
        "tokens_per_second": round(run.state.tokens / seconds, 1) if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "memory_in_use_bytes": run.meter.above_imports(),
        "predicted_memory_bytes": run.predicted,
        "adapter_bytes": (run.directory / ADAPTER).stat().st_size,
        "micro_batch": plan_of(run),
        "memory_ran_out": _cuts(run),
        "versions": versions(),
        "device": str(run.trainee.accelerator.device),
        "seed": run.recipe.train.seed,
        "paper": run.recipe.paper.model_dump(mode="json") if run.recipe.paper else None,
    }

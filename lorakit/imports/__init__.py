"""Adapters that other tools trained become run directories: `lorakit import`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorakit.checkpoint import head_of
from lorakit.compose import run_name, write_run
from lorakit.errors import CheckpointError, RecipeError
from lorakit.imports.base import Foreign
from lorakit.imports.fit import misfits, task_of, trained
from lorakit.imports.loralib import Wanted, read_loralib, split_merged
from lorakit.imports.peft import find, read_peft
from lorakit.merge import check_place
from lorakit.methods.lora import LoRA
from lorakit.model import Base, prepare
from lorakit.recipe import Recipe, load
from lorakit.schedule import Train

__all__ = ["ImportReport", "import_adapter"]

_SCHEDULE = Train(epochs=1, batch_size=1, lr=1e-4)
"""A recipe must have one; nothing was trained by it."""


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Args:
        format: The tool that wrote the adapter.
        tensors: Of the file; each found its place.
        modules: Adapted.
        whole: Tensors of the run beside the modules' updates, such as a head's.
        method: As the run's recipe has it.
        task: Its name and kind.
        made_for: The base that the file names, if it names one.
        notes: What was assumed.
    """

    format: str
    tensors: int
    modules: int
    whole: int
    method: LoRA
    task: str
    made_for: str | None
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table."""
        method = self.method
        kind = ("DoRA" if method.dora else "LoRA") + (", scaled as rsLoRA" if method.rslora else "")
        rows = [("format", self.format), ("tensors, all placed", f"{self.tensors:,}")]
        rows += [("adapted modules", f"{self.modules:,}"), ("whole tensors", f"{self.whole:,}")]
        rows += [("method", kind), ("rank, alpha", _both(method)), ("targets", _short(method.targets or []))]
        rows += [("trained whole", _short(method.also_train))] if method.also_train else []
        rows.append(("task", self.task))
        return rows + ([("made for", self.made_for)] if self.made_for else [])


def import_adapter(
    source: Path,
    out: Path,
    base: str | None,
    alpha: float | None = None,
    recipe: Path | None = None,
    targets: Sequence[str] | None = None,
) -> ImportReport:
    """Make a run directory of an adapter that PEFT or loralib has written.

    Args:
        source: PEFT's directory, or a loralib checkpoint.
        out: The run directory to make; it may exist if it is empty.
        base: The base that it was trained on; None: the recipe's.
        alpha: loralib's lora_alpha, which is not in its files.
        recipe: Names the task, so that the run can be evaluated.
        targets: Which matrices of a fused projection a loralib file adapted, by the paper's names; None: the recipe's,
            or q and v where it is two.

    Raises:
        RecipeError: An argument is missing or wrong, or a module cannot be adapted here.
        CheckpointError: The file is damaged or does not fit the base; lists every tensor that does not. Nothing is
            written then.
        LorakitError: The base is missing, or the disk refuses.
    """
    given = load(recipe) if recipe else None
    if given is None and base is None:
        raise RecipeError("--base: name the base that the adapter was trained on, or a --recipe that does")
    foreign = _read(source, alpha)
    if targets is not None and foreign.format != "loralib":
        raise RecipeError("--targets: PEFT's files say it; leave this out")
    parts = foreign.parts
    check_place(out, sum(t.numel() * 4 for t in parts.state().values()))
    made = _recipe(foreign, out, base, given)
    bare = prepare(made.model, [], head_of(made), made.train.seed, skeleton=True)
    notes = list(foreign.notes)
    if foreign.format == "loralib":
        parts, fused = split_merged(foreign.file, parts, bare, Wanted(targets, _targets(given)))
        notes += [f"of fused projections {', '.join(fused)} were taken to be adapted"] if fused else []
    if problems := misfits(foreign, parts, bare):
        raise CheckpointError(*problems)
    parts = trained(foreign, parts, bare)
    about = f"Made by `lorakit import` from {foreign.format}'s {foreign.file.name}"
    note = f"{about}; it was not trained by this `train` section."
    opened = write_run(out, made, bare, parts, str(foreign.file), note)
    method = opened.prepared.methods[0]
    assert isinstance(method, LoRA)
    task = made.task.name if given else f"{made.task.kind}, without rows: merge, export and combine take the run"
    return ImportReport(
        format=foreign.format,
        tensors=foreign.tensors,
        modules=len(parts.pairs),
        whole=len(parts.whole),
        method=method,
        task=task,
        made_for=foreign.made_for,
        notes=tuple(notes),
    )


def _read(source: Path, alpha: float | None) -> Foreign:
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or directory")
    directory = find(source)
    if directory is not None:
        if alpha is not None:
            raise RecipeError("--alpha: PEFT's adapter_config.json says it; leave this out")
        return read_peft(directory)
    if source.is_dir():
        raise CheckpointError(f"{source}: holds no adapter_config.json; for a loralib checkpoint name its file")
    return read_loralib(source, alpha)


def _recipe(foreign: Foreign, out: Path, base: str | None, given: Recipe | None) -> Recipe:
    """The run's recipe; its method stands in for the adapter's, which is not known yet."""
    if given is None:
        assert base is not None
        model = Base(base=base)
        fields = {"name": run_name(out), "model": model, "method": [LoRA()], "train": _SCHEDULE}
        return Recipe.model_validate({**fields, "task": task_of(foreign, model)})
    needs = given.task.head
    if foreign.kind and (foreign.kind == "generation") != (needs == "generation"):
        raise RecipeError(f"--recipe: its task needs a model for {needs}, and {foreign.file} is for {foreign.kind}")
    update = {
        "model": given.model.model_copy(update={"base": base, "revision": None}) if base else given.model,
        "method": [LoRA()],
        "task": given.task.resolve(),
        "train": given.train.model_copy(update={"init_from": None}),
        "paper": None,
        "methods": {},
    }
    return given.model_copy(update=update)


def _targets(given: Recipe | None) -> list[str] | None:
    """What a recipe's LoRA adapts."""
    methods = given.method if given else []
    return next((method.targets for method in methods if isinstance(method, LoRA)), None)


def _both(method: LoRA) -> str:
    other = len({*method.ranks, *method.alphas})
    return f"{method.rank}, {method.alpha:g}" + (f"; others by {other} patterns" if other else "")


def _short(targets: Sequence[str]) -> str:
    return ", ".join(targets[:8]) + (f", … ({len(targets)} in all)" if len(targets) > 8 else "")

"""`train.init_from`: start from what another run has trained, as the paper's MRPC, RTE and STS-B start from MNLI.

What the method trains is taken over by name. The task's head is another one (MNLI has three classes, MRPC two), so it
follows a rule: `drop` makes all of it new, as the authors' RoBERTa code; `keep_matching` keeps the tensors whose shapes
fit, as their DeBERTa code keeps the pooler and drops the classifier.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit.checkpoint import Provenance, adapter_file, read_adapter
from lorakit.errors import CheckpointError
from lorakit.model import Prepared
from lorakit.progress import Progress
from lorakit.recipe import Recipe
from lorakit.schedule import InitFrom
from lorakit.surgery import load_trainable, trainable_parameters
from lorakit.training.state import newest_checkpoint

KEY = "train.init_from"


@dataclass(frozen=True)
class Source:
    """A finished run to start from.

    Args:
        rule: The recipe's section.
        file: Its published adapter.
        state: What it trained, by name.
        provenance: On which base and by which method.
        sha256: Of the adapter file.
    """

    rule: InitFrom
    file: Path
    state: dict[str, Tensor]
    provenance: Provenance
    sha256: str


def read_source(recipe: Recipe, out: Path, resume: bool) -> Source | None:
    """Read the run that a recipe starts from; cheap, so that a missing one speaks before the base is loaded.

    Args:
        recipe: Validated.
        out: The run directory that will be written.
        resume: Whether the run continues from its own checkpoints, where there are any.

    Returns:
        None where the recipe names no run, or its own checkpoints go before.

    Raises:
        CheckpointError: There is no such run, or it is not finished.
    """
    rule = recipe.train.init_from
    if rule is None or (resume and newest_checkpoint(out) is not None):
        return None
    run = Path(rule.run).expanduser()
    if run.resolve() == out.resolve():
        raise CheckpointError(f"{KEY}.run: {rule.run} is the directory of this run itself; give another --out")
    if not run.is_dir():
        raise CheckpointError(f"{KEY}.run: {rule.run}: no such directory; make it first: {_how(run)}")
    try:
        file = adapter_file(run)
        state, provenance = read_adapter(file)
    except CheckpointError as error:
        raise CheckpointError(*(f"{KEY}.run: {problem}" for problem in error.problems)) from error
    return Source(rule, file, state, provenance, hashlib.sha256(file.read_bytes()).hexdigest())


def _how(run: Path) -> str:
    """The command that makes a run."""
    recipe = Path("recipes") / f"{run.name}.yaml"
    if not recipe.is_file():
        return f"lorakit train RECIPE --out {run}"
    usual = run == Path("runs") / run.name
    return f"lorakit train {recipe}" + ("" if usual else f" --out {run}")


def warm_start(source: Source, prepared: Prepared, progress: Progress) -> dict[str, Any]:
    """Load another run's state into a prepared model.

    Args:
        source: The other run.
        prepared: With fresh values, as the seed gives them.
        progress: Told about the head.

    Returns:
        For the report: the run, its adapter's hash, and which of the head's modules were kept and which are new.

    Raises:
        CheckpointError: The other run has another base, method or set of tensors; names every difference.
    """
    there = source.provenance.of_methods(source.provenance.read_methods())  # with keys that came later
    if problems := _differences(there, Provenance.of(prepared), source.rule):
        raise CheckpointError(*problems)
    own, found = trainable_parameters(prepared.model), source.state
    head = [name for name in own if prepared.in_head(name)]
    kept = {name for name in head if source.rule.head == "keep_matching" and _fits(own[name], found.get(name))}
    state = {name: tensor for name, tensor in found.items() if name in kept or not prepared.in_head(name)}
    fresh = {name: own[name].detach() for name in head if name not in kept}
    load_trainable(prepared.model, state | fresh, str(source.file))
    modules = {name.rpartition(".")[0]: "kept" if name in kept else "new" for name in head}
    told = ", ".join(f"{module} {how}" for module, how in modules.items())
    progress.say(f"starts from {source.rule.run}" + (f"; head: {told}" if told else ""))
    return {"run": source.rule.run, "adapter_sha256": source.sha256, "head": modules}


def _fits(own: Tensor, found: Tensor | None) -> bool:
    return found is not None and found.shape == own.shape


def _differences(there: Provenance, here: Provenance, rule: InitFrom) -> list[str]:
    """What differs between the other run's base and method and this run's, one message each."""
    where = f"{KEY}.run: {rule.run} was trained"
    if there.base != here.base:
        return [f"{where} on the base {there.base}, and this recipe has {here.base}"]
    problems = []
    if there.revision != here.revision:
        problems.append(f"{where} on revision {there.revision} of {there.base}, and this is {here.revision}")
        problems[-1] += f"; set model.revision={there.revision}" if there.revision else ""
    problems += _other_methods(there.methods, here.methods, where)
    if not problems and there.fingerprint != here.fingerprint:  # it is of the tensors that the method adapts
        problems.append(f"{where} on other weights of {there.base} than are here")
    return problems


def _other_methods(there: list[dict[str, Any]], here: list[dict[str, Any]], where: str) -> list[str]:
    names = [" + ".join(method["name"] for method in methods) for methods in (there, here)]
    if names[0] != names[1]:
        return [f"{where} by the method {names[0]}, and this recipe has {names[1]}"]
    problems = []
    for before, now in zip(there, here, strict=True):
        problems += [
            f"{where} with method.{key} {json.dumps(before.get(key))}, and this recipe has {json.dumps(now.get(key))}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ]
    return problems

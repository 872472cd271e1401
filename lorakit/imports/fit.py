"""Whether an adapter fits a base: every tensor of the file has its place, and no place is left empty."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lorakit.arch import architecture
from lorakit.compose import WHOLE, Parts, base_tensor, rows_of
from lorakit.errors import CheckpointError
from lorakit.imports.base import Foreign
from lorakit.merge_plan import tied_groups
from lorakit.model import Base, Head, Prepared, load_config, prepare
from lorakit.surgery import biases, trainable_parameters
from lorakit.targets import out_features
from lorakit.tasks.imported import Imported

_SHOWN = 12
"""Problems that are listed in full; of a wrong base every module is one."""


def task_of(foreign: Foreign, model: Base) -> Imported:
    """What stands in for a task: the kind of the head, and its labels.

    Args:
        foreign: The adapter.
        model: The base.

    Raises:
        CheckpointError: Neither the file nor the base says what the adapter is for.
        ModelError: The base is missing.
    """
    config = load_config(model, model.locate(), Head("generation"))
    row = architecture(config)
    headed = any(name.split(".")[0] in row.head for name in foreign.parts.whole)
    kind = foreign.kind or ("classification" if headed else "generation" if row.decoder else None)
    if kind == "generation":
        return Imported.model_validate({"kind": kind})
    if kind is None:
        raise CheckpointError(f"{foreign.file}: holds no head, and {model.base} generates no text: what is it for?")
    bare = prepare(model, [], Head("classification", ("a", "b")), seed=0, skeleton=True)
    there = dict(bare.model.named_modules())
    if absent := [path for path in foreign.parts.pairs if path not in there]:
        what = f"{absent[0]}: this {row.model_type} base has no such module ({len(absent)} such)"
        raise CheckpointError(f"{foreign.file}: {what}; is {model.base} the base that it was trained on?")
    matrices = [n for n, p in trainable_parameters(bare.model).items() if bare.in_head(n) and p.ndim == 2]
    last = matrices[-1]
    if last in foreign.parts.whole:
        count = foreign.parts.whole[last].shape[0]
    elif last in bare.file_names:
        count = base_tensor(bare, last).shape[0]
    else:
        raise CheckpointError(f"{foreign.file}: holds no {last}, and the base has none: the task's head is missing")
    names = [str(label) for _, label in sorted(config.id2label.items())]
    if count == 1:
        return Imported.model_validate({"kind": "regression", "labels": ["score"]})
    labels = names if len(names) == count else [f"LABEL_{index}" for index in range(count)]
    return Imported.model_validate({"kind": "classification", "labels": labels})


def misfits(foreign: Foreign, parts: Parts, bare: Prepared) -> list[str]:
    """What of an adapter's pairs has no place in a base, and what is missing; at most a dozen messages.

    Args:
        foreign: As read.
        parts: With the row blocks apart.
        bare: The base with the task's head.
    """
    modules = dict(bare.model.named_modules())
    found = []
    for path in sorted(parts.pairs):
        if problem := _misfit(foreign, parts, bare, path, modules.get(path)):
            found.append(problem)
    for path, module in modules.items():
        if foreign.targeted is None or path in parts.pairs or out_features(module) is None or bare.in_head(f"{path}."):
            continue
        if foreign.targeted(path):
            found.append(f"{path}: target_modules name it, and the file has nothing for it")
    found += [
        f"modules_to_save name {name}, and the file has nothing for it"
        for name in parts.unsaved
        if any(path.endswith(name) for path in modules)
    ]
    found = [f"{foreign.file}: {problem}" for problem in found]
    if len(found) <= _SHOWN:
        return found
    rest = f"{foreign.file}: and {len(found) - _SHOWN} more; is {bare.located.name} the base that it was trained on?"
    return [*found[:_SHOWN], rest]


def _misfit(foreign: Foreign, parts: Parts, bare: Prepared, path: str, module: nn.Module | None) -> str | None:
    if module is None:
        return f"{path}: this {bare.row.model_type} base has no such module"
    if (out := out_features(module)) is None:
        return f"{path}: is a {type(module).__name__}, which cannot be adapted here"
    if bare.in_head(f"{path}."):
        return f"{path}: is of the task's head, which is trained whole here, and not by a low-rank update"
    if foreign.targeted is not None and not foreign.targeted(path):
        return f"{path}: is in the file, but target_modules do not name it: PEFT would ignore it"
    return _misshapen(parts, bare, path, (out, module.get_parameter("weight").numel() // out))


def _misshapen(parts: Parts, bare: Prepared, path: str, shape: tuple[int, int]) -> str | None:
    out, in_ = shape
    for name, pair in parts.pairs[path].items():
        rows = out if name == WHOLE else len(torch.arange(out)[_index(rows_of(bare, path, name))])
        if (pair.b.shape[0], pair.a.shape[1]) != (rows, in_):
            return f"{path}: is of a {pair.b.shape[0]}x{pair.a.shape[1]} matrix, and the base's is {rows}x{in_}"
    if path in parts.magnitudes and parts.magnitudes[path].shape != (out,):
        return f"{path}: has {parts.magnitudes[path].numel()} magnitudes for {out} outputs"
    return None


def _index(rows: slice | tuple[int, ...]) -> slice | list[int]:
    return rows if isinstance(rows, slice) else list(rows)


def trained(foreign: Foreign, parts: Parts, bare: Prepared) -> Parts:
    """The adapter without what the file repeats of the base, with the biases' rule and the modules trained whole.

    PEFT writes the table of an adapted embedding beside its pair.

    Args:
        foreign: As read.
        parts: The adapter.
        bare: The base with the task's head.

    Raises:
        CheckpointError: A tensor was trained whole that has no place in the base, or of a module that has a pair too;
            lists all such.
    """
    head = trainable_parameters(bare.model).keys()
    every = biases(bare.model)
    own = {name: value for name, value in parts.whole.items() if name in head}
    rest, problems = _untied(foreign, {name: value for name, value in parts.whole.items() if name not in head}, bare)
    by_rule = {} if foreign.bias_known and parts.bias == "none" else every
    changed = []
    for name, value in rest.items():
        if name in by_rule:
            continue
        problem = _misplaced(bare, name, value)
        if problem is None and not _of_base(bare, name, value):
            changed.append(name)
            if name.rpartition(".")[0] in parts.pairs:
                problem = "was trained whole, and its module has a pair too; a run here does one of the two"
        if problem is not None:
            problems.append(f"{foreign.file}: {name}: {problem}")
    if problems:
        raise CheckpointError(*problems)
    also = tuple(dict.fromkeys(name.rpartition(".")[0] for name in changed))
    of_modules = {
        name: rest[name] if name in rest else base_tensor(bare, name)
        for path in also
        for name, _ in bare.model.get_submodule(path).named_parameters(path, recurse=False)
    }
    found = {name: value for name, value in rest.items() if name in every and name not in of_modules}
    bias = parts.bias if foreign.bias_known else _bias_of(list(found), parts, every)
    kept = own | of_modules | (found if bias != "none" else {})
    return replace(parts, whole=kept, bias=bias, also=also)


def _untied(foreign: Foreign, rest: Mapping[str, Tensor], bare: Prepared) -> tuple[dict[str, Tensor], list[str]]:
    """Whole tensors with those of a tied weight under its first name, and what is wrong with such.

    PEFT trains and loads the modules that it saves one by one: a tied weight of which it saved one use has parted.
    """
    found, problems = dict(rest), []
    for names in (group for group in tied_groups(bare.model) if len(group) > 1):
        shape = bare.model.get_parameter(names[0]).shape  # others are refused under their own names
        there = {name: found.pop(name) for name in names if name in found and found[name].shape == shape}
        if not there:
            continue
        first, value = next(iter(there.items()))
        alone = foreign.format == "peft" and len(there) < len(names) and not _of_base(bare, first, value)
        if not alone and all(torch.equal(value, other) for other in there.values()):
            found[names[0]] = value
            continue
        others = ", ".join(name for name in names if name != first)
        problems.append(
            f"{foreign.file}: {first}: was trained apart from {others}, and in this base they are one tensor, which a "
            "run here keeps; train it with ensure_weight_tying, or import it onto a copy of the base that has both "
            "tensors and tie_word_embeddings: false"
        )
    return found, problems


def _bias_of(found: list[str], parts: Parts, every: Mapping[str, nn.Parameter]) -> Literal["none", "lora_only", "all"]:
    """The rule for biases, from those that a file holds beside the head's."""
    if not found:
        return "none"
    return "lora_only" if set(found) == {f"{path}.bias" for path in parts.pairs} & every.keys() else "all"


def _misplaced(bare: Prepared, name: str, value: Tensor) -> str | None:
    """What is wrong with the place of a whole tensor; None where the base has one."""
    parameters = dict(bare.model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        return f"this {bare.row.model_type} base has no such tensor"
    shape = tuple(parameters[name].shape)
    if shape != tuple(value.shape):
        return f"has shape {tuple(value.shape)}, and the base's has {shape}; was its vocabulary resized?"
    return None


def _of_base(bare: Prepared, name: str, value: Tensor) -> bool:
    """Whether a whole tensor, of the base's shape, is the base's own."""
    parameters = dict(bare.model.named_parameters(remove_duplicate=False))
    known = next((n for n, p in parameters.items() if p is parameters[name] and n in bare.file_names), None)
    return known is not None and _same(base_tensor(bare, known), value)


def _same(base: Tensor, value: Tensor) -> bool:
    """Whether a tensor is the base's, as it is or rounded to 16 bits; one that was trained a little is neither."""
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return any(torch.equal(base.to(dtype).float(), value.float()) for dtype in kinds)

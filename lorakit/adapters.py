"""Adapters of one base, switched in memory: the base is there once, and what is exchanged is the adapters' layers.

switch = Switch("runs/mrpc", "runs/stsb")
model = switch.use("runs/stsb")
model(**switch.tokenizer("It rains.", "It is raining.", return_tensors="pt")).logits
"""

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.checkpoint import Opened, head_of, open_run
from lorakit.combine import other_base
from lorakit.errors import CheckpointError
from lorakit.export.base import whole_tensors
from lorakit.layers.adapted import Adapted
from lorakit.merge_plan import adapted_layers, tied_groups
from lorakit.model import prepare, suit, torch_dtype
from lorakit.packing import share_packing
from lorakit.surgery import replace

_SWITCHED = ("lora", "bitfit")
"""Methods that leave the model's structure as it is."""


@dataclass(frozen=True)
class _Mounted:
    """What a run puts into the base, and what it takes the place of.

    Args:
        opened: The run.
        modules: Module path → what stands there: adapted layers, and the head's modules.
        parameters: (its module, its name) → the trained parameter, of those that belong to no such module.
    """

    opened: Opened
    modules: Mapping[str, nn.Module]
    parameters: Mapping[tuple[nn.Module, str], nn.Parameter]


class Switch:
    """A base in memory, and adapters that take turns on it.

    Args:
        runs: Run directories of one base, the first of which says how it is loaded.
        device: Where the model goes; None: the GPU where there is one.

    Raises:
        CheckpointError: The runs have other bases, or their methods change more than weights; names all such runs.
        LorakitError: A run or its base is missing or damaged.
    """

    def __init__(self, *runs: str | os.PathLike[str], device: str | torch.device | None = None) -> None:
        assert runs, "name a run"
        opened = {str(run): open_run(Path(run), skeleton=True) for run in runs}
        first = next(iter(opened.values()))
        if problems := [problem for run in opened.values() for problem in _problems(first, run)]:
            raise CheckpointError(*problems)
        recipe = first.recipe
        prepared = prepare(recipe.model, [], head_of(recipe), recipe.train.seed)
        self.model: Any = prepared.model.requires_grad_(False)
        """The base, with the adapter that was used last."""
        if (loaded := torch_dtype(recipe.model, prepared.located.directory)) != torch.float32:
            _compute_in(loaded, self.model)
        self.tokenizer: Any = prepared.tokenizer
        """Of the base."""
        self._first = first
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._base_modules: dict[str, nn.Module] = {}
        self._base_parameters: dict[tuple[nn.Module, str], nn.Parameter] = {}
        self._mounted = {name: self._mount(run) for name, run in opened.items()}
        self.used: str | None = None
        """The run whose adapter is in the model."""

    def add(self, run: str | os.PathLike[str]) -> None:
        """Read one more adapter; the base is not read again.

        Raises:
            CheckpointError: It is of another base, or its method changes more than weights.
            LorakitError: The run is missing or damaged.
        """
        opened = open_run(Path(run), skeleton=True)
        if problems := _problems(self._first, opened):
            raise CheckpointError(*problems)
        used, _ = self.used, self.use(None)
        self._mounted[str(run)] = self._mount(opened)
        self.use(used)

    def use(self, run: str | os.PathLike[str] | None) -> Any:
        """Put a run's adapter in the place of the one that is there.

        Args:
            run: As it was given; None: the bare base (its new head, if the task has one, untrained).

        Returns:
            The model, in eval mode; the same object each time.

        Raises:
            CheckpointError: There is no such run here.
        """
        name = None if run is None else str(run)
        if name is not None and name not in self._mounted:
            raise CheckpointError(f"{name}: is not here; there are: {', '.join(self._mounted)}")
        before = self._mounted[self.used] if self.used is not None else None
        after = self._mounted[name] if name is not None else None
        modules, parameters = (after.modules, after.parameters) if after else ({}, {})
        for path in before.modules.keys() - modules.keys() if before else ():
            self._put(path, self._base_modules[path])
        for path, module in modules.items():
            self._put(path, module)
        for owner, last in before.parameters.keys() - parameters.keys() if before else ():
            setattr(owner, last, self._base_parameters[owner, last])
        for (owner, last), parameter in parameters.items():
            setattr(owner, last, parameter)
        self._say_labels(after.opened if after else self._first)
        self.used = name
        return self.model

    def _put(self, path: str, module: nn.Module) -> None:
        """Set a module into the model; the hooks of the place (`last_block`) stay with the place."""
        before = self.model.get_submodule(path)
        if module is before:
            return
        replace(self.model, path, module)
        module._forward_pre_hooks, before._forward_pre_hooks = before._forward_pre_hooks, OrderedDict()
        module._forward_hooks, before._forward_hooks = before._forward_hooks, OrderedDict()

    def _mount(self, opened: Opened) -> _Mounted:
        """Tie a run's layers, which were made for a skeleton, to the base's modules; the model is bare meanwhile."""
        skeleton = opened.prepared.model
        device = next(self.model.parameters()).device
        modules: dict[str, nn.Module] = {**adapted_layers(skeleton)}
        heads = {path.split(".")[0] for path, _ in skeleton.named_parameters() if opened.prepared.in_head(path)}
        modules |= {path: skeleton.get_submodule(path) for path in sorted(heads)}
        for path, module in modules.items():
            base = self._base_modules.setdefault(path, self.model.get_submodule(path))
            if isinstance(module, Adapted):
                module.frozen = base
                share_packing(self.model, module)
            module.requires_grad_(False).to(device)
        parameters: dict[tuple[nn.Module, str], nn.Parameter] = {}
        ties = {names[0]: names for names in tied_groups(self.model)}
        for name, value in whole_tensors(opened).items():
            if name.split(".")[0] in heads:
                continue
            parameter = nn.Parameter(value.to(device), requires_grad=False)
            for path, _, last in (one.rpartition(".") for one in ties[name]):
                owner = self._base_modules.get(path) or self.model.get_submodule(path)
                parameters[owner, last] = parameter
                parameters = _even(owner, last) | parameters  # what was trained wins
        for owner, last in parameters:
            self._base_parameters.setdefault((owner, last), owner.get_parameter(last))
        return _Mounted(opened, modules, parameters)

    def _say_labels(self, opened: Opened) -> None:
        """Let the model's config name the classes of the head that is there."""
        head = head_of(opened.recipe)
        if head.kind != "generation":
            suit(self.model.config, opened.recipe.model, head)
            self.model.num_labels = len(head.labels)


def _compute_in(dtype: torch.dtype, model: Any) -> None:
    """Let a model whose layers have several dtypes compute in one, as in training, whoever calls it."""
    plain = model.forward

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(model.device.type, dtype=dtype):
            return plain(*args, **kwargs)

    model.forward = forward


def _even(owner: nn.Module, trained: str) -> dict[tuple[nn.Module, str], nn.Parameter]:
    """What stands beside a norm's trained parameter, in float32 as that: as `surgery.even_norms` has it in training."""
    if not isinstance(owner, nn.LayerNorm):
        return {}
    rest = {last: value for last, value in owner.named_parameters(recurse=False) if last != trained}
    return {
        (owner, last): nn.Parameter(value.detach().float(), requires_grad=False)
        for last, value in rest.items()
        if value.dtype != torch.float32
    }


def _problems(first: Opened, run: Opened) -> list[str]:
    """Why a run cannot take turns with another."""
    found = [
        f"{run.directory}: was trained by {method.name}, which changes more than weights; what can be switched are "
        f"{' and '.join(_SWITCHED)}"
        for method in run.prepared.methods
        if method.name not in _SWITCHED
    ]
    if problem := other_base(first, run):
        found.append(problem)
    if first.recipe.model.dtype != run.recipe.model.dtype:
        found.append(f"{run.directory}: has model.dtype {run.recipe.model.dtype}, {first.directory} another")
    return found

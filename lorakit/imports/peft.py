"""PEFT's LoRA adapters: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`)."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from torch import Tensor

from lorakit.arch import ALL_LINEAR
from lorakit.compose import WHOLE, Pair, Parts
from lorakit.errors import CheckpointError
from lorakit.export.peft import CONFIG, PREFIX, SUFFIXES, WEIGHTS
from lorakit.imports.base import Foreign, paired, read_weights, tensors_of
from lorakit.tasks.base import Kind

BIN = "adapter_model.bin"
_KINDS: dict[str, Kind] = {"CAUSAL_LM": "generation", "SEQ_CLS": "classification"}
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's weights as they were."""
_WITHOUT_EFFECT = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",  # the factors are of (out, in) either way
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
"""Fields that say nothing about what the finished adapter computes; those of starts are seen to by `init_lora_weights`.
Every other field that is not in `Config` must be empty."""
_REPLACED, _SAVED = ".original_module.", re.compile(r"\.modules_to_save\.(default\.)?")
"""With `bias: all`, PEFT also writes the biases of a head under the names of what it wraps around it: those of the head
that was there before, which counts for nothing, and once more those of the trained one."""
_HEADS = ("classifier", "score")
"""What PEFT puts into `modules_to_save` by itself, be it there or not."""

T = TypeVar("T")


class Config(BaseModel):
    """What counts in an `adapter_config.json`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    r: PositiveInt
    lora_alpha: PositiveFloat
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, PositiveFloat] | None = None
    bias: Literal["none", "lora_only", "all"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True

    def problems(self) -> list[str]:
        """What no adapter of a plain base can have, one message each."""
        found = []
        if self.init_lora_weights is not None and self.init_lora_weights not in _PLAIN_STARTS:
            found.append(
                f"init_lora_weights is {self.init_lora_weights}, which changed the base's own weights before training, "
                "so the adapter alone does not give the model; have PEFT save it as a plain one "
                "(save_pretrained with path_initial_model_for_weight_conversion)"
            )
        if self.task_type is not None and self.task_type not in _KINDS:
            found.append(f"task_type is {self.task_type}; there are adapters for {' and '.join(_KINDS)} here")
        for name, value in sorted((self.model_extra or {}).items()):
            if name not in _WITHOUT_EFFECT and value:
                found.append(f"{name} is set, which has no form here")
        return found

    def targets(self, path: str) -> bool:
        """Whether PEFT would adapt a module, by the rules for lists and patterns."""
        if _named(self.exclude_modules or [], path):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save or []):
            return False
        return _named(self.target_modules or [], path) and (isinstance(self.target_modules, str) or self._layer(path))

    def _layer(self, path: str) -> bool:
        """Whether a module lies in one of `layers_to_transform`."""
        chosen = [self.layers_to_transform] if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        if not chosen:
            return True
        lists = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        tries = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in lists or []] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in tries if (match := re.match(pattern, path))), None)
        return found is not None and int(found[1]) in chosen

    def setting(self, path: str) -> tuple[int, float]:
        """Rank and alpha of a module: the first pattern that matches the end of its path counts."""
        rank = _first(self.rank_pattern or {}, path, self.r)
        return rank, _first(self.alpha_pattern or {}, path, self.lora_alpha)


def find(source: Path) -> Path | None:
    """The directory of a PEFT adapter that a path names: itself, or that of its file of weights; None where it is none.

    Args:
        source: A file or a directory.
    """
    directory = source.parent if source.name in (WEIGHTS, BIN, CONFIG) else source
    return directory if (directory / CONFIG).is_file() else None


def read_peft(directory: Path) -> Foreign:
    """Read an adapter that PEFT has saved.

    Raises:
        CheckpointError: A file is missing, damaged, or of a kind that has no form here; lists all that is wrong.
    """
    config = _config(directory / CONFIG)
    file = directory / (BIN if not (directory / WEIGHTS).is_file() and (directory / BIN).is_file() else WEIGHTS)
    tensors = tensors_of(file, read_weights(file))
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if not key.startswith(PREFIX):
            raise CheckpointError(f"{file}: {key}: PEFT would ignore it: it does not begin with {PREFIX}")
        if suffix is None:
            if _REPLACED not in name:
                whole[_SAVED.sub(".", name.replace(".base_layer.", "."))] = value
        else:
            factors.setdefault(name.removesuffix(suffix), {})[SUFFIXES[suffix]] = value
    paired(file, factors)
    try:
        parts = _parts(file, config, factors, whole)
        for path in factors:
            config.targets(path)
    except re.error as error:
        raise CheckpointError(f"{directory / CONFIG}: {error.pattern!r} is no pattern: {error}") from error
    return Foreign(
        "peft",
        file,
        len(tensors),
        parts,
        kind=_KINDS[config.task_type] if config.task_type else None,
        made_for=config.base_model_name_or_path,
        targeted=None if config.target_modules in (None, ALL_LINEAR) else config.targets,
    )


def _config(file: Path) -> Config:
    try:
        config = Config.model_validate(json.loads(file.read_bytes()))
    except ValidationError as error:
        problems = [f"{file}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise CheckpointError(*problems) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if config.peft_type != "LORA":
        raise CheckpointError(f"{file}: peft_type is {config.peft_type}; of PEFT's methods LORA can be imported")
    if problems := config.problems():
        raise CheckpointError(*(f"{file}: {problem}" for problem in problems))
    return config


def _parts(file: Path, config: Config, factors: Mapping[str, Mapping[str, Tensor]], whole: dict[str, Tensor]) -> Parts:
    problems = []
    pairs: dict[str, dict[str, Pair]] = {}
    for path, found in factors.items():
        rank, alpha = config.setting(path)
        shapes = tuple(found["A"].shape), tuple(found["B"].shape)
        if shapes[0][0] != rank or shapes[1][1] != rank:
            problems.append(
                f"{file}: {path}: A is {shapes[0]} and B {shapes[1]}, but the configuration says rank {rank}"
            )
        if config.use_dora != ("magnitude" in found):
            problems.append(f"{file}: {path}: use_dora and a magnitude go together, and here is one of the two")
        pairs[path] = {WHOLE: Pair(found["B"], found["A"], alpha)}
    if problems:
        raise CheckpointError(*problems)
    magnitudes = {path: found["magnitude"].flatten() for path, found in factors.items() if "magnitude" in found}
    unsaved = tuple(
        name
        for name in config.modules_to_save or []
        if name not in _HEADS and not any(above.endswith(name) for key in whole for above in _above(key))
    )
    return Parts(pairs, magnitudes, whole, config.use_rslora, config.lora_dropout, config.bias, unsaved=unsaved)


def _above(key: str) -> Iterator[str]:
    """The paths of the modules that a tensor is in."""
    return accumulate(key.split(".")[:-1], "{}.{}".format)


def _named(names: list[str] | str, path: str) -> bool:
    """Whether a list of last names, or a pattern of the whole path, names a module."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _first(patterns: Mapping[str, T], path: str, default: T) -> T:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)

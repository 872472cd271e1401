"""Adapters on disk, and run directories: what was trained, by which recipe, on which base.

An adapter file holds the trainable parameters by canonical name and one metadata key, `lorakit`, with canonical JSON:
several keys would be written in random order, and equal adapters would not have equal bytes. The digests in it prove,
at each reading, that the file is as it was written.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_bytes
from torch import Tensor

from lorakit.errors import CheckpointError, NewerFormat
from lorakit.methods import METHODS
from lorakit.methods.base import Method, publish
from lorakit.model import Base, Head, Prepared, prepare
from lorakit.nf4 import Onto, Quantised
from lorakit.recipe import Recipe, load
from lorakit.runtime import write_atomic
from lorakit.seal import canonical, sealed, tensors_digest, unsealed
from lorakit.surgery import load_trainable
from lorakit.weights import read_header

FORMAT = 2
"""Of adapter files. 1 had no digests."""
QUANTISED_FORMAT = 3
"""Of those that were trained on a quantised base, which readers of format 2 would take for a whole one."""
ADAPTER = "adapter.safetensors"
RECIPE = "recipe.yaml"
CHECKPOINTS = "checkpoints"
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""Of what methods and optimisers keep, by safetensors' names."""


@dataclass(frozen=True)
class Provenance:
    """What an adapter belongs to.

    Args:
        format: Of the file; readers refuse a newer one.
        methods: The methods' sections, as in the recipe.
        base: The base's id; a local one by its last path component.
        revision: The commit of a hub id.
        fingerprint: Of the base's tensors that the adapter changes.
        quantised: How the base was quantised, if it was.
    """

    format: int
    methods: list[dict[str, Any]]
    base: str
    revision: str | None
    fingerprint: str
    quantised: Quantised | None = None

    @classmethod
    def of(cls, prepared: Prepared) -> "Provenance":
        """That of a prepared model."""
        located = prepared.located
        number = FORMAT if prepared.quantised is None else QUANTISED_FORMAT
        return cls(
            number,
            _dumped(prepared.methods),
            located.name,
            located.revision,
            prepared.fingerprint(),
            prepared.quantised,
        )

    def fields(self) -> dict[str, Any]:
        """As they stand in a file."""
        fields = asdict(self)
        if self.quantised is None:
            del fields["quantised"]
        return fields

    def of_methods(self, methods: Sequence[Method]) -> "Provenance":
        """The same, of an adapter that other methods read: what is published may be of another form."""
        return replace(self, methods=_dumped(methods))

    def read_methods(self) -> list[Method]:
        """The methods that read the adapter, with the keys that they had not yet when it was written.

        Raises:
            CheckpointError: There is no such method, or it has other keys.
        """
        try:
            return [METHODS[section["name"]].model_validate_json(json.dumps(section)) for section in self.methods]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the adapter's methods cannot be read: {error}; upgrade lorakit") from error


def _shown(methods: Sequence[Method]) -> str:
    """Methods in one line, without the keys that have their defaults."""
    return ", ".join(json.dumps({"name": m.name, **m.model_dump(mode="json", exclude_defaults=True)}) for m in methods)


def _dumped(methods: Sequence[Method]) -> list[dict[str, Any]]:
    return [method.model_dump(mode="json") for method in methods]


def save_adapter(file: Path, state: Mapping[str, Tensor], provenance: Provenance) -> None:
    """Write an adapter at once; equal adapters give equal bytes.

    Raises:
        LorakitError: The disk refuses.
    """
    fields = sealed({**provenance.fields(), "tensors": tensors_digest(state)})
    write_atomic(file, save_bytes(dict(state), metadata={"lorakit": canonical(fields)}))


def read_adapter(file: Path) -> tuple[dict[str, Tensor], Provenance]:
    """Read and check an adapter.

    Raises:
        CheckpointError: It is missing, truncated, damaged, not ours, or of a newer version (`NewerFormat`).
    """
    _, metadata = read_header(file)
    if "lorakit" not in metadata:
        raise CheckpointError(f"{file}: not a lorakit adapter: it has no `lorakit` metadata")
    try:
        fields = json.loads(metadata["lorakit"])
        written = int(fields["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: its `lorakit` metadata cannot be read: {error}") from error
    if written > QUANTISED_FORMAT:
        raise NewerFormat(f"{file}: written by a newer lorakit (format {written}); upgrade to read it")
    try:
        state = dict(StoredTensors(file))
        if written > 1:
            fields = unsealed(fields)
            check_digest(file, state, fields.pop("tensors"))
        quantised = fields.pop("quantised", None)
        provenance = Provenance(**fields, quantised=quantised and Quantised(**quantised))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: damaged: its `lorakit` metadata: {error}") from error
    if not isinstance(provenance.fingerprint, str):
        raise CheckpointError(f"{file}: damaged: its fingerprint is no text")
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(f"{file}: {bad[0]} holds NaN or infinity")
    return state, provenance


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for: the optimiser's may be as large as the base.

    They are read, and not mapped: a disk that fails would end the process where nobody could say why.

    Args:
        file: The file.

    Raises:
        CheckpointError: It cannot be read; when it is made, or when a tensor is asked for.
    """

    def __init__(self, file: Path) -> None:
        self._file, (self._entries, _) = file, read_header(file)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        try:
            tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
            entry.read_into(tensor.reshape(-1).view(torch.uint8).numpy().data, 0)
        except (OSError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{self._file}: damaged: {name}: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def check_digest(file: Path, tensors: Mapping[str, Tensor], digest: object) -> None:
    """Whether a file's tensors are those that were written (see `seal`).

    Raises:
        CheckpointError: They are not, or cannot be read.
    """
    if tensors_digest(tensors) != digest:
        raise CheckpointError(f"{file}: damaged: its tensors are not those that were written")


@dataclass
class Opened:
    """A run directory with its model.

    Args:
        directory: The run.
        recipe: Resolved.
        prepared: The model with the adapter in it.
        state: The adapter.
        checkpoint: "step-N", or None for the published adapter.
        onto: What a merge adds to, where the base was in 4 bits in training: to what those left of it, or to the base
            as its files have it, for which the adapter was not trained.
        doubts: What may make the last bits of the base others than those that were trained on.
    """

    directory: Path
    recipe: Recipe
    prepared: Prepared
    state: dict[str, Tensor]
    checkpoint: str | None = None
    onto: Onto = "trained"
    doubts: list[str] = field(default_factory=list)


def adapter_file(run: Path, checkpoint: str | None = None) -> Path:
    """The published adapter of a run, or that of a checkpoint ("step-200").

    Raises:
        CheckpointError: The run or the checkpoint does not exist; lists those that do.
    """
    _require_run(run)
    if checkpoint is None:
        if not (run / ADAPTER).is_file():
            raise CheckpointError(f"{run}: this run has not finished: no {ADAPTER}; continue it with train --resume")
        return run / ADAPTER
    file = run / CHECKPOINTS / checkpoint / ADAPTER
    if not re.fullmatch(r"step-\d+", checkpoint) or not file.is_file():
        there = sorted(path.name for path in (run / CHECKPOINTS).glob("step-*"))
        raise CheckpointError(f"{run}: no checkpoint {checkpoint}; there are: {', '.join(there) or 'none'}")
    return file


def _require_run(run: Path) -> None:
    if not (run / RECIPE).is_file():
        raise CheckpointError(f"{run}: not a run directory: it has no {RECIPE}")


def head_of(recipe: Recipe) -> Head:
    """What the recipe's task asks of the model."""
    return Head(recipe.task.head, recipe.task.labels)


def open_run(
    run: Path,
    checkpoint: str | None = None,
    *,
    base_only: bool = False,
    skeleton: bool = False,
    base: Base | None = None,
) -> Opened:
    """Rebuild a run's model from its recipe, and load its adapter.

    Args:
        run: The run directory.
        checkpoint: "step-N", or None for the published adapter.
        base_only: Leave the methods and the adapter out: the bare base (with a new head).
        skeleton: Build the frozen part on the meta device.
        base: Another base than the recipe's (a merged model), with `base_only`.

    Raises:
        CheckpointError: There is no such run or checkpoint, it is damaged, or the base is another one.
    """
    _require_run(run)
    recipe = load(run / RECIPE)
    head, seed, model = head_of(recipe), recipe.train.seed, base or recipe.model
    if base_only:
        return Opened(run, recipe, prepare(model, [], head, seed, skeleton=skeleton), {})
    file = adapter_file(run, checkpoint)
    state, provenance = read_adapter(file)
    methods = provenance.read_methods()
    prepared = prepare(model, methods, head, seed, skeleton=skeleton)
    given = [method.resolve(prepared.row) for method in recipe.method]
    if prepared.methods not in (given, publish(given, {})[0]):
        raise CheckpointError(f"{file}: was trained by {_shown(methods)}; {run / RECIPE} has {_shown(given)}")
    load_trainable(prepared.model, state, str(file))
    if provenance.fingerprint != prepared.fingerprint():
        raise CheckpointError(
            f"{file}: was trained on another base: {provenance.base}"
            f"{' at ' + provenance.revision if provenance.revision else ''}; {recipe.model.base} has other weights here"
        )
    doubts = _check_quantised(file, provenance.quantised, prepared.quantised)
    return Opened(run, recipe, prepared, state, checkpoint, doubts=doubts)


def _check_quantised(file: Path, then: Quantised | None, now: Quantised | None) -> list[str]:
    """What may be different about a base that is quantised again.

    Raises:
        CheckpointError: It would have other weights than in training.
    """
    if then is None and now is None:
        return []
    if then is None or now is None:
        was, is_ = ("in 4 bits" if found else "not quantised" for found in (then, now))
        raise CheckpointError(f"{file}: was trained on a base that was {was}; model.quantize of the run says {is_}")
    if apart := then.differences(now):
        raise CheckpointError(f"{file}: was trained on a base that was quantised in another way: {'; '.join(apart)}")
    return then.doubts(now)

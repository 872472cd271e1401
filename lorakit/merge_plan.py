"""What a merge will write: for every tensor of the merged model, where it comes from and into which file it goes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lorakit.errors import MergeError
from lorakit.layers.adapted import Adapted, Stored
from lorakit.model import Prepared
from lorakit.nf4 import Onto, Quantised, require, round_trip
from lorakit.surgery import WRAPPED, canonical
from lorakit.weights import ELEMENT_BYTES, Entry, model_entries, model_files, read_header

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""safetensors' names of the dtypes that can be added to."""


Requantise = Callable[[Tensor], Tensor]
"""A whole tensor → what 4 bits leave of it."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the merged model.

    Args:
        key: Its name in the file.
        base: The base's tensor, if it has one.
        trained: What replaces the base's.
        layer: The adapted layer whose edit is then applied.
        dtype: safetensors' name of the dtype to write.
        requantise: Of a tensor that was in 4 bits in training: the whole one → what the 4 bits left of it.
    """

    key: str
    base: Entry | None
    trained: Tensor | None
    layer: Adapted | None
    dtype: str
    requantise: Requantise | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        if self.trained is not None:
            return tuple(self.trained.shape)
        assert self.base is not None
        return self.base.shape

    @property
    def kind(self) -> str:
        """What the merge does: one of the report's counts."""
        if self.base is None:
            return "added"
        if self.layer is not None:
            return "merged"
        if self.trained is not None:
            return "replaced"
        return "copied" if self.requantise is None else "dequantised"

    @property
    def verbatim(self) -> bool:
        """Whether the base's bytes are written as they are."""
        return self.kind == "copied" and self.base is not None and self.base.dtype == self.dtype

    @property
    def size(self) -> int:
        """Bytes to write."""
        if self.verbatim:
            assert self.base is not None
            return self.base.stop - self.base.start
        return torch.Size(self.shape).numel() * FLOATS[self.dtype].itemsize

    def blocks(self, elements: int) -> Iterator[tuple[int, Tensor]]:
        """The tensor before its layer's edit, in blocks of whole rows.

        One that was in 4 bits is whole in memory meanwhile: its blocks of weights are not those of rows.

        Args:
            elements: At most so many in a block, but at least a row.

        Yields:
            The first row, and the rows in float32, of shape (rows, …).
        """
        count, rest = (self.shape[0], self.shape[1:]) if self.shape else (1, ())
        width = torch.Size(rest).numel()
        step = max(1, elements // max(1, width))
        values = self.trained
        if values is None and self.requantise is not None and width:
            assert self.base is not None
            values = self.requantise(read_stored(self.base, 0, self.shape))
        for start in range(0, count if width else 0, step):
            shape = (min(count, start + step) - start, *rest)
            if values is not None:
                yield start, values.reshape(count, *rest)[start : start + step].float()
            else:
                assert self.base is not None
                yield start, read_rows(self.base, start, shape)


@dataclass(frozen=True)
class Plan:
    """What a merge will write.

    Args:
        files: File name → its pieces in order.
        dropped: Keys of the base that the task's model does not have.
        untied: Whether tied embeddings part, since only one of the two uses is adapted.
        dtype: safetensors' name of the dtype of new tensors: the one asked for, or the base's prevailing one.
    """

    files: dict[str, list[Piece]]
    dropped: list[str]
    untied: bool
    dtype: str

    @property
    def pieces(self) -> list[Piece]:
        """Of all files."""
        return [piece for pieces in self.files.values() for piece in pieces]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(piece.size for piece in self.pieces)

    @property
    def dtype_name(self) -> str:
        """PyTorch's name of the dtype, as in a model's config."""
        return name_of(FLOATS[self.dtype])


def name_of(dtype: torch.dtype) -> str:
    """As in recipes and configs: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def read_rows(entry: Entry, start: int, shape: tuple[int, ...]) -> Tensor:
    """Rows of a stored tensor in float32; see `read_stored`."""
    return read_stored(entry, start, shape).float()


def read_stored(entry: Entry, start: int, shape: tuple[int, ...]) -> Tensor:
    """Rows of a stored tensor in its own dtype.

    Args:
        entry: The tensor.
        start: Index of the first row.
        shape: (rows, …) of what is read; () for a scalar.
    """
    rows = torch.empty(shape, dtype=FLOATS[entry.dtype])
    entry.read_into(bytes_of(rows), start * torch.Size(shape[1:]).numel() * rows.itemsize)
    return rows


def bytes_of(rows: Tensor) -> memoryview:
    """The memory of a tensor without gaps."""
    return memoryview(rows.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def plan_merge(
    prepared: Prepared, state: Mapping[str, Tensor], dtype: str | None = None, onto: Onto = "trained"
) -> Plan:
    """Decide what the merged files will hold.

    Args:
        prepared: The model with the adapter in it; its frozen part may be a skeleton.
        state: The adapter.
        dtype: float32, bfloat16 or float16; None: as the base's files have it.
        onto: Whether a base that was in 4 bits in training is written as those left it, or as its files have it.

    Raises:
        MergeError: The method cannot be merged, or a tensor has a dtype that cannot be added to.
        RecipeError: The base was in 4 bits, and bitsandbytes is missing.
    """
    if reasons := [reason for method in prepared.methods if (reason := method.unmergeable())]:
        raise MergeError(*reasons)
    headers = {file.name: read_header(file)[0] for file in model_files(prepared.located.directory)}
    entries = {key: entry for header in headers.values() for key, entry in header.items()}
    pieces, untied = _pieces(prepared, state, entries)
    if onto == "trained" and prepared.quantised is not None:
        pieces = _as_trained(pieces, prepared, prepared.quantised)
    wanted = next(name for name, torch_dtype in FLOATS.items() if name_of(torch_dtype) == dtype) if dtype else None
    default = wanted or _prevailing(entries)
    made = {piece.key: _with_dtype(piece, wanted, default) for piece in pieces}
    _check(list(made.values()))
    dropped = sorted(entries.keys() - made.keys())
    files = {name: [made.pop(key) for key in header if key in made] for name, header in headers.items()}
    files[list(files)[-1]] += made.values()
    ordered = {name: sorted(there, key=_element_bytes, reverse=True) for name, there in files.items() if there}
    return Plan(ordered, dropped, untied, default)


def _as_trained(pieces: list[Piece], prepared: Prepared, quantised: Quantised) -> list[Piece]:
    """The pieces, those of layers that were in 4 bits with the way there and back."""
    require("model.quantize")
    keys = {prepared.file_names.get(f"{path}.weight", f"{path}.weight") for path in quantised.modules}
    if lost := sorted(keys - {piece.key for piece in pieces}):
        raise MergeError(
            f"{lost[0]}: was in 4 bits in training, and the base's files have no tensor of this name ({len(lost)} in "
            "all): use --onto original"
        )
    there = requantiser(quantised)
    return [dataclasses.replace(piece, requantise=there) if piece.key in keys else piece for piece in pieces]


def requantiser(quantised: Quantised) -> Requantise:
    """A whole tensor → what 4 bits leave of it, on the kind of device that it was quantised on, where that is here."""
    device = quantised.device if quantised.device == "cpu" or torch.cuda.is_available() else "cpu"
    return partial(round_trip, device=device)


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """Path → adapted layer."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def stored_weight(prepared: Prepared, path: str, elements: int) -> Stored:
    """Reads an adapted layer's frozen weight from the base's files; one in 4 bits as those leave it.

    Args:
        prepared: The model; its frozen part may be a skeleton.
        path: Of the layer.
        elements: At most so many in a block, but at least a row.
    """
    name = f"{path}.weight"
    entries = model_entries(prepared.located.directory)
    key = prepared.file_names.get(name, name)
    if key not in entries:  # tied: the files have it once, by the other name
        tied = next(group for group in tied_groups(prepared.model) if name in group)
        key = next(other for other in (prepared.file_names.get(one, one) for one in tied) if other in entries)
    entry = entries[key]
    quantised = prepared.quantised
    there = requantiser(quantised) if quantised is not None and path in quantised.modules else None
    return partial(Piece(name, entry, None, None, entry.dtype, there).blocks, elements)


def _pieces(prepared: Prepared, state: Mapping[str, Tensor], entries: dict[str, Entry]) -> tuple[list[Piece], bool]:
    """Every tensor, its dtype still open, and whether tied embeddings part."""
    layers = {f"{path}.weight": layer for path, layer in adapted_layers(prepared.model).items()}
    pieces = []
    untied = renamed = False
    for group in tied_groups(prepared.model):
        keys = {name: prepared.file_names.get(name, name) for name in group}
        known = next((name for name in group if keys[name] in entries), group[0])
        trained = next((state[name] for name in group if name in state), None)
        if keys[known] not in entries and trained is None:
            renamed = True
            continue
        parts = len(group) > 1 and any(name in layers for name in group)
        untied = untied or parts
        for name in group if parts else [known]:
            pieces.append(Piece(keys[name], entries.get(keys[known]), trained, layers.get(name), ""))
    for name in (
        prepared.model.state_dict().keys() - dict(prepared.model.named_parameters(remove_duplicate=False)).keys()
    ):
        key = prepared.file_names.get(name, name)  # a buffer
        if key in entries:
            pieces.append(Piece(key, entries[key], None, None, ""))
    if renamed:  # transformers knows some of the files' tensors by other names: what matches nothing may be those
        rest = entries.keys() - {piece.key for piece in pieces} - set(prepared.file_names.values())
        pieces += [Piece(key, entries[key], None, None, "") for key in sorted(rest)]
    return pieces, untied


def tied_groups(model: nn.Module) -> list[list[str]]:
    """The untouched model's tensors by canonical name; the names of one tied parameter stand together."""
    added = {
        f"{path}.{name}"
        for path, layer in adapted_layers(model).items()
        for name, _ in layer.named_parameters()
        if not name.startswith(f"{WRAPPED}.")
    }
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in added:
            groups.setdefault(id(parameter), []).append(canonical(name))
    return list(groups.values())


def _with_dtype(piece: Piece, wanted: str | None, default: str) -> Piece:
    if piece.base is None:
        return dataclasses.replace(piece, dtype=default)
    stored = piece.base.dtype
    return dataclasses.replace(piece, dtype=(wanted or stored) if stored in FLOATS else stored)


def _element_bytes(piece: Piece) -> int:
    """Tensors of large elements come first, as safetensors has it, so that each starts at a multiple of its own."""
    return ELEMENT_BYTES.get(piece.dtype, 0)


def _prevailing(entries: Mapping[str, Entry]) -> str:
    """The float dtype of most of the base's bytes."""
    sizes = dict.fromkeys(FLOATS, 0)
    for entry in entries.values():
        if entry.dtype in sizes:
            sizes[entry.dtype] += entry.stop - entry.start
    return max(sizes, key=lambda name: sizes[name])


def _check(pieces: list[Piece]) -> None:
    problems = [
        f"{piece.key}: is stored as {piece.dtype}, which cannot be added to"
        for piece in pieces
        if not piece.verbatim and piece.dtype not in FLOATS
    ]
    if problems:
        raise MergeError(*problems)

"""Merging: W ← W + ΔW in the base's own files, so that plain transformers serves what was trained.

The files are streamed: an untouched tensor is copied as bytes, a changed one passes through float32 in blocks of rows
and is rounded once, so that memory is that of a block and not of the model. What was written is then read back from
the disk and proved, before it appears under its name.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lorakit.errors import MergeError
from lorakit.merge_check import LogitCheck, verify_logits, verify_tensors
from lorakit.merge_plan import FLOATS, Piece, Plan, bytes_of, name_of, plan_merge, read_rows
from lorakit.merge_routes import compare_routes
from lorakit.nf4 import Onto
from lorakit.runtime import atomic_directory, size_text
from lorakit.weights import Chunk, write_file

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened
    from lorakit.model import Prepared

BLOCK = 2**20
"""Elements of a row block: 4 MiB in float32. Blocks of 32 MiB and more (2**22 in float64) the C library takes anew from
the kernel each time: 9 ns an element to convert or add, in the place of 0.4."""
COPY = 2**24
"""Bytes of untouched tensors that are copied at a time, between two words about the progress."""
INDEX = "model.safetensors.index.json"

Verify = Literal["none", "tensors", "logits"]
Progress = Callable[[int, int], None]
"""Called with the bytes written so far and those of the whole."""

_OF_SENTENCE_ENCODERS = {
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "data_config.json",
    "train_script.py",
}
"""What sentence-transformers puts beside a model; it would describe another one than the merged."""
_ONTO: dict[Onto, str] = {
    "trained": "the base as 4 bits left it, which was trained on",
    "original": "the base as its files have it, which was not trained on",
}
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".codes", ".jinja", ".py"}


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote and how it was proved.

    Args:
        copied: Tensors as the base has them.
        merged: Tensors with an adapter's update.
        replaced: Tensors of the base that were trained themselves.
        added: New tensors, such as a head.
        dequantised: Tensors of a base that was in 4 bits, as those left them, without an update.
        dropped: Tensors of the base that the task's model does not have.
        dtype: That the merged model loads in.
        bytes: Written.
        seconds: For all of it.
        verified: The level asked for.
        logits: The comparison of the logits, where that was asked for.
        onto: Of a base that was in 4 bits: what was added to.
        routes: Of such a base: how far the logits of both ways to merge are from those of the quantised model.
    """

    copied: int
    merged: int
    replaced: int
    added: int
    dropped: int
    dtype: str
    bytes: int
    seconds: float
    verified: Verify
    logits: LogitCheck | None = None
    dequantised: int = 0
    onto: Onto | None = None
    routes: dict[Onto, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for a table."""
        counts = ["copied", "merged", "replaced", "added", "dropped", *(["dequantised"] if self.dequantised else [])]
        rows = [(f"tensors {name}", f"{getattr(self, name):,}") for name in counts]
        rows += [("dtype", self.dtype), ("size", size_text(self.bytes)), ("seconds", f"{self.seconds:.1f}")]
        if self.onto:
            rows.append(("added to", _ONTO[self.onto]))
        rows.append(("verified", self.verified))
        if check := self.logits:
            rows += [
                ("max |merged - adapted|", f"{check.max_difference:.3g}"),
                ("max |adapted - base|", f"{check.effect:.3g}"),
                ("share of the effect lost", f"{check.lost_share:.2%}"),
            ]
        for way, share in (self.routes or {}).items():
            which = "this merge" if way == self.onto else f"with --onto {way}"
            rows.append((f"logits off the trained model's, {which}", f"{share:.2%}"))
        return rows


def merge(
    opened: "Opened",
    out: Path,
    dtype: str | None = None,
    verify: Verify = "logits",
    batches: Sequence[Mapping[str, Tensor]] = (),
    progress: Progress | None = None,
) -> MergeReport:
    """Write a model that plain transformers loads and that does what the adapted one does.

    Args:
        opened: A run; its frozen part may be a skeleton, since the base is read from its files. Where that was in 4
            bits, `onto` says what is added to.
        out: The directory to make; it may exist if it is empty.
        dtype: float32, bfloat16 or float16 for every tensor; None: as the base's files have it.
        verify: none; tensors: every tensor read back and recomputed; logits: that, and the reloaded model's logits.
        batches: Model inputs of real rows, for the logits.
        progress: Told how far the writing is.

    Raises:
        MergeError: The method cannot be merged, the adapter does nothing, there is no room, or a check fails. Then
            nothing is left of it.
        LorakitError: The disk refuses.
    """
    assert verify != "logits" or batches, "rows are needed to compare logits on"
    started = time.perf_counter()
    plan = plan_merge(opened.prepared, opened.state, dtype, opened.onto)
    check_place(out, plan.size)
    check = routes = None
    with atomic_directory(out) as beside:
        _write(plan, opened.prepared, beside, progress)
        if verify != "none":
            verify_tensors(plan, beside)
        if verify == "logits":
            check = verify_logits(opened, beside, batches)
            if opened.prepared.quantised is not None:
                routes = compare_routes(opened, beside, batches, FLOATS[plan.dtype])
    kinds = [piece.kind for piece in plan.pieces]
    return MergeReport(
        copied=kinds.count("copied"),
        merged=kinds.count("merged"),
        replaced=kinds.count("replaced"),
        added=kinds.count("added"),
        dropped=len(plan.dropped),
        dtype=plan.dtype_name,
        bytes=plan.size,
        seconds=time.perf_counter() - started,
        verified=verify,
        logits=check,
        dequantised=kinds.count("dequantised"),
        onto=opened.onto if opened.prepared.quantised is not None else None,
        routes=routes,
    )


def check_place(out: Path, size: int) -> None:
    """Refuse a directory that holds something, or a disk that has no room.

    Args:
        out: To be made.
        size: Bytes that will be written.

    Raises:
        MergeError: With what to do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergeError(f"{out}: exists already; name another directory, or remove it first")
    there = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise MergeError(f"{out}: {size_text(size)} are needed, {size_text(free)} are free there")


def _write(plan: Plan, prepared: "Prepared", out: Path, progress: Progress | None) -> None:
    writer = _Writer(plan, progress)
    for name, pieces in plan.files.items():
        layout = {piece.key: (piece.dtype, piece.shape, piece.size) for piece in pieces}
        write_file(out / name, layout, writer.chunks(pieces), {"format": "pt"})
    writer.check_effect()
    if list(plan.files) != ["model.safetensors"]:
        places = {piece.key: name for name, pieces in plan.files.items() for piece in pieces}
        index = {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    _copy_files(prepared, out)
    _write_config(plan, prepared, out)


class _Writer:
    """Makes the bytes of the pieces, and watches whether anything came out different from the base.

    Args:
        plan: What to write.
        progress: Told about each chunk.
    """

    def __init__(self, plan: Plan, progress: Progress | None) -> None:
        self.plan, self.progress = plan, progress
        self.done = 0
        self.watched = "merged" if any(piece.kind == "merged" for piece in plan.pieces) else "replaced"
        self.changed = self.changed_after_rounding = False

    def chunks(self, pieces: Sequence[Piece]) -> Iterator[Chunk]:
        """The bytes of some pieces, one after the other."""
        for piece in pieces:
            for chunk in _copied(piece) if piece.verbatim else self._computed(piece):
                yield chunk
                self.done += len(chunk)
                if self.progress:
                    self.progress(self.done, self.plan.size)

    def _computed(self, piece: Piece) -> Iterator[Chunk]:
        dtype = FLOATS[piece.dtype]
        edit = piece.layer.edit(partial(piece.blocks, BLOCK)) if piece.layer else None
        for start, source in piece.blocks(BLOCK):
            exact = edit.rows(source, start) if edit else source
            rounded = exact.to(dtype)
            extremes = torch.stack(rounded.aminmax())  # NaN, if there is one
            if not extremes.isfinite().all() and (source.isfinite() & ~rounded.isfinite()).any():
                raise MergeError(f"{piece.key}: has values beyond the range of {name_of(dtype)}; use --dtype float32")
            if piece.kind == self.watched:
                self._compare(piece, start, exact, rounded, source)
            yield bytes_of(rounded.contiguous())

    def _compare(self, piece: Piece, start: int, exact: Tensor, rounded: Tensor, source: Tensor) -> None:
        if self.changed_after_rounding:
            return
        assert piece.base is not None
        base = source if piece.requantise else read_rows(piece.base, start, tuple(exact.shape))
        self.changed = self.changed or not torch.equal(exact, base)
        self.changed_after_rounding = not torch.equal(rounded, base.to(rounded.dtype))

    def check_effect(self) -> None:
        """Refuse a merge that returns the base.

        Raises:
            MergeError: Tensors of the base were to change, and none did.
        """
        if self.changed_after_rounding or not any(piece.kind == self.watched for piece in self.plan.pieces):
            return
        if self.changed:
            raise MergeError(f"rounding to {self.plan.dtype_name} loses the whole adapter; use --dtype float32")
        raise MergeError(
            "the adapter is zero: the merged model would be the base. Was it trained? See the run's report"
        )


def _copied(piece: Piece) -> Iterator[Chunk]:
    assert piece.base is not None
    for start in range(0, piece.size, COPY):
        yield piece.base.span(start, COPY)


def _write_config(plan: Plan, prepared: "Prepared", out: Path) -> None:
    """The task's config: the model class, the labels and the dtype, and no path of this machine."""
    config = copy.deepcopy(prepared.model.config)
    config.architectures = [type(prepared.model).__name__]
    config.dtype = plan.dtype_name
    if plan.untied:
        config.tie_word_embeddings = False
    config.save_pretrained(out)
    file = out / "config.json"
    fields = json.loads(file.read_text())
    fields.pop("_name_or_path", None)
    file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _copy_files(prepared: "Prepared", out: Path) -> None:
    """Tokenizer and generation files, as the base has them but for the padding token that the run used."""
    for file in sorted(prepared.located.directory.iterdir()):
        own = file.name == "config.json" or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in _COPIED_SUFFIXES and not own and file.name not in _OF_SENTENCE_ENCODERS:
            shutil.copyfile(file, out / file.name)
    place = out / "tokenizer_config.json"
    fields = json.loads(place.read_text()) if place.is_file() else {}
    if not fields.get("pad_token"):
        place.write_text(json.dumps(fields | {"pad_token": prepared.tokenizer.pad_token}, indent=2) + "\n")

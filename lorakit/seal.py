"""Digests of what a run writes: a flipped bit is found when a file is read, and not when a score looks odd."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DIGEST = "digest"


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors: their names, dtypes, shapes and bytes, in whatever order they come.

    Args:
        tensors: By name; on any device.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def canonical(fields: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal fields give equal text."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, and their digest as one more."""
    return {**fields, _DIGEST: _of(fields)}


def unsealed(fields: Any) -> dict[str, Any]:
    """The fields without their digest, which must be theirs.

    Args:
        fields: As read from JSON.

    Raises:
        ValueError: They are none, have no digest, or have changed since they were sealed.
    """
    if not isinstance(fields, dict) or _DIGEST not in fields:
        raise ValueError("it has no digest")
    rest = {name: value for name, value in fields.items() if name != _DIGEST}
    if fields[_DIGEST] != _of(rest):
        raise ValueError("its digest is another: something in it has changed since it was written")
    return rest


def _of(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields).encode()).hexdigest()

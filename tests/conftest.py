"""Tiny bases, made once per session, and one thread for everybody."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Tiny matrices: more threads only wait for one another, and for the other workers. Before torch is imported, so that
# the processes that tests start have it too.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Tiny matrices: more threads only wait for one another, and for other tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Callable[[str], Path]:
    """A model type → the directory of a tiny base of it; nobody may write there."""
    from lorakit.tiny import make_tiny_base

    made: dict[str, Path] = {}

    def base(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = make_tiny_base(model_type, tmp_path_factory.mktemp("tiny") / model_type)
        return made[model_type]

    return base

"""Runs of several processes on one machine, from a server that has all imported: a second each and not ten."""

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from small_runs import history, recipe_file, report, run

from lorakit.errors import LorakitError
from lorakit.recipe import load

SECONDS = 240.0
PRELOAD = [
    "lorakit.training.run",
    "accelerate",
    "matplotlib.pyplot",
    "sacrebleu",
    "sklearn.metrics",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.tokenization_bert",
]
NO_DROPOUT: dict[str, dict[str, float]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "llama": {},
}


MODELS = {"classification": "bert", "completion": "gpt2"}
ROWS = 17
"""With steps of 8 rows, each epoch ends with a step of a single row: fewer than there are processes."""


def recipe_of(folder: Path, tiny: Callable[[str], Path], kind: str, parallel: str = "ddp", **sections: Any) -> Path:
    base = MODELS[kind]
    train = {"micro_batch_size": 2, "parallel": parallel, **sections.pop("train", {})}
    model = {"overrides": NO_DROPOUT[base], **sections.pop("model", {})}
    return recipe_file(folder, tiny(base), kind, ROWS, train=train, model=model, **sections)


def same(one: Path, other: Path, rel: float = 1e-4) -> None:
    """Fails unless two runs agree to rounding: steps, evaluations, predictions, adapters."""
    import torch
    from safetensors.torch import load_file

    for a, b in zip(history(one, "log"), history(other, "log"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=20 * rel)
        assert [a[name] for name in ("step", "epoch", "targets", "tokens", "lr")] == [
            b[name] for name in ("step", "epoch", "targets", "tokens", "lr")
        ]
    for name, value in report(one)["metrics"]["validation"].items():
        assert report(other)["metrics"]["validation"][name] == pytest.approx(value, rel=rel), name
    for kind in ("eval", "final", "save"):
        lines = [[(line["step"], line.get("rows")) for line in history(out, kind)] for out in (one, other)]
        assert lines[0] == lines[1]
    predictions = [(out / "predictions/validation.jsonl").read_text() for out in (one, other)]
    assert predictions[0] == predictions[1]
    adapters = [load_file(out / "adapter.safetensors") for out in (one, other)]
    assert list(adapters[0]) == list(adapters[1])
    for name, tensor in adapters[0].items():
        # Adam divides by the gradient's size, so where a gradient is next to nothing its rounding shows
        torch.testing.assert_close(
            tensor, adapters[1][name], rtol=10 * rel, atol=2 * rel, msg=lambda m, n=name: f"{n}: {m}"
        )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _child(action: Callable[..., None], args: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    try:
        action(*args)
    except LorakitError as error:
        log.write_text(f"{type(error).__name__}: {error}")
        os._exit(error.exit_code)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def start(size: int, folder: Path, action: Callable[..., None], *args: Any) -> list[BaseProcess]:
    """Start `action` in so many processes of one world; what ends one is written to folder/RANK.log."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder.mkdir(parents=True, exist_ok=True)
    port, processes = free_port(), []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}}
        processes.append(context.Process(target=_child, args=(action, args, environment, folder / f"{rank}.log")))
    for process in processes:
        process.start()
    return list(processes)


def finish(processes: list[BaseProcess], folder: Path, seconds: float = SECONDS) -> list[str]:
    """Wait for all; returns what ended each, "" where nothing did. Kills all where one does not end in time."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    assert not alive, f"{len(alive)} of {len(processes)} processes did not end"
    logs = [folder / f"{rank}.log" for rank in range(len(processes))]
    texts = [log.read_text() if log.is_file() else "" for log in logs]
    return [text or (f"exit code {p.exitcode}" if p.exitcode else "") for text, p in zip(texts, processes, strict=True)]


def train_files(jobs: Sequence[tuple[Path, Path]], resume: bool = False) -> None:
    """In a child: train recipes' files in silence, one after the other."""
    from lorakit.world import join, leave

    for file, out in jobs:
        run(load(file), out, resume=resume)
    leave(join())


def train_in_world(size: int, jobs: Sequence[tuple[Path, Path]], *, resume: bool = False) -> None:
    """Train recipes' files into run directories, with so many processes.

    Raises:
        AssertionError: With what the processes said.
    """
    folder = jobs[0][1].parent / f"{jobs[0][1].name}-logs"
    said = finish(start(size, folder, train_files, list(jobs), resume), folder)
    assert not any(said), "\n".join(said)


def train_and_die(file: Path, out: Path, step: int, victims: Sequence[int]) -> None:
    """In a child: train until `step` is done, and be killed then; the others must notice."""
    from lorakit.training import run as run_module

    steps = run_module.optimise

    def dying(*args: Any) -> Iterator[Any]:
        for done in steps(*args):
            yield done
            if done.number == step and int(os.environ["RANK"]) in victims:
                os.kill(os.getpid(), signal.SIGKILL)

    run_module.optimise = dying
    train_files([(file, out)])


def die_in_world(size: int, file: Path, out: Path, step: int, victims: Sequence[int]) -> list[str]:
    """Train with so many processes, some of which are killed after `step`; returns what ended each."""
    folder = out.parent / f"{out.name}-died"
    return finish(start(size, folder, train_and_die, file, out, step, list(victims)), folder)

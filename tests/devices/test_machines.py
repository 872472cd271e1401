"""Launchers of other people: torchrun over two machines (network namespaces that only know each other), accelerate."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_runs import report, run
from world_runs import free_port, recipe_of, same

from lorakit.recipe import load

Tiny = Callable[[str], Path]
SECONDS = 400
_ADDRESSES = ("10.213.77.1", "10.213.77.2")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_machines() -> Iterator[list[str]]:
    """The names of two network namespaces joined by a cable; both are removed at the end.

    Raises:
        OSError, CalledProcessError: This machine does not let us.
    """
    names = [f"lorakit-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"lk{os.getpid() % 100000}{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", cables[0], "netns", names[0], "type", "veth", "peer", "name", cables[1], "netns", names[1])
        for name, cable, address in zip(names, cables, _ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "name", "cable0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "lorakit", "train"]


def ended(processes: list["subprocess.Popen[str]"]) -> list[tuple[str, str]]:
    """Output and errors of processes that must all end well."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, errors
    return said


@pytest.mark.slow
def test_two_machines_train_as_one(tmp_path: Path, tiny: Tiny) -> None:
    """torchrun's rendezvous; only the first machine has the run directory."""
    file = recipe_of(tmp_path, tiny, "classification")
    run(load(file), tmp_path / "alone")
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    meet += ["--rdzv-endpoint", f"{_ADDRESSES[0]}:29411"]
    try:
        machines = two_machines()
        names = machines.__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', b'') or error!r}")
    try:
        processes = [
            subprocess.Popen(
                [
                    "ip", "netns", "exec", name,
                    *torchrun(*meet, "--local-addr", address, "--rdzv-conf", f"is_host={host}"),
                    str(file), "--out", str(tmp_path / name),
                ],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "cable0", "TP_SOCKET_IFNAME": "cable0"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for name, address, host in zip(names, _ADDRESSES, (1, 0), strict=True)
        ]  # fmt: skip
        said = ended(processes)
    finally:
        machines.__exit__(None, None, None)
    written = [tmp_path / name for name in names if (tmp_path / name).exists()]
    assert len(written) == 1, "one machine writes"
    same(tmp_path / "alone", written[0])
    assert report(written[0])["micro_batch"]["processes"] == 2
    assert sum("step 6 of 6" in out for out, _ in said) == 1, "and speaks"


@pytest.mark.slow
def test_accelerate_launch(tmp_path: Path, tiny: Tiny) -> None:
    accelerate = shutil.which("accelerate", path=str(Path(sys.executable).parent))
    assert accelerate is not None
    file = recipe_of(tmp_path, tiny, "classification")
    run(load(file), tmp_path / "alone")
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
    process = subprocess.Popen(
        [accelerate, "launch", *options, "-m", "lorakit", "train", str(file), "--out", str(tmp_path / "run")],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ended([process])
    same(tmp_path / "alone", tmp_path / "run")
    assert report(tmp_path / "run")["micro_batch"]["processes"] == 2

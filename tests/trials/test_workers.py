"""The processes that do trials: who does what where, what came of it, and that none stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import recipe_file

from lorakit.compare.table import row_of
from lorakit.errors import RecipeError
from lorakit.progress import Silent
from lorakit.trials import workers
from lorakit.trials.jobs import Job
from lorakit.trials.settings import read, recipe_for
from lorakit.trials.workers import devices, run_all

Tiny = Callable[[str], Path]
SHAM = """
import json, os, pathlib, sys, time
for line in sys.stdin:
    job = json.loads(line)
    os.dup2(os.open(job["log"], os.O_WRONLY | os.O_APPEND), 2)
    out = pathlib.Path(job["out"])
    began = time.monotonic()
    time.sleep(0.2)
    code = 0
    BODY
    if not code:
        out.mkdir(parents=True)
        about = {"device": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(), "keeps": sys.argv[1:]}
        report = {"status": "complete", "span": [began, time.monotonic()], **about}
        (out / "report.json").write_text(json.dumps(report))
    print(json.dumps({"code": code}), flush=True)
"""


def jobs(folder: Path, base: Path, *names: str) -> list[Job]:
    given = read(recipe_file(folder, base), [])
    return [Job(name, 0, recipe_for(given, name, 0), folder / "out") for name in names]


@pytest.fixture
def sham(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A body → run_all starts workers that have it in place of a run."""

    def install(body: str = "") -> Path:
        file = tmp_path / "sham.py"
        file.write_text(SHAM.replace("BODY", body))
        monkeypatch.setattr(workers, "lorakit_command", lambda words: [sys.executable, str(file), *words[1:]])
        return file

    return install


@pytest.mark.parametrize("alone", [False, True])
def test_each_device_has_one_run_at_a_time(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, sham: Callable[..., Path], alone: bool
) -> None:
    sham()
    made = jobs(tmp_path, tiny("bert"), "lora", "full", "bitfit", "lin")
    monkeypatch.setattr(workers, "devices", lambda at_once: ["2", "5"])
    assert run_all(made, Silent(), label="", alone=alone) == {}
    found: list[dict[str, Any]] = [job.report() or {} for job in made]
    assert sorted(report["device"] for report in found) == ["2", "2", "5", "5"]
    for device in ("2", "5"):
        first, second = sorted(report["span"] for report in found if report["device"] == device)
        assert first[1] <= second[0]
    first, second = found[0]["span"], found[1]["span"]
    assert max(first[0], second[0]) < min(first[1], second[1]), "two at once, on two devices"
    assert len({report["pid"] for report in found}) == (4 if alone else 2)
    assert all(report["keeps"] == ([] if alone else ["--keep-base"]) for report in found)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('error: one\\nerror: the other\\nbye', file=sys.stderr); code = 3", "the other"),
        ("raise ValueError('oh')", "ValueError: oh"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL (perhaps memory ran out)"),
        ("os._exit(7)", "exit code 7"),
        ("os._exit(0)", "exit code 1"),
        ("(os.fork() or time.sleep(3)) and os._exit(7); os._exit(0)", "exit code 7"),  # the child holds the pipe
    ],
)
def test_a_run_fails_alone(tmp_path: Path, tiny: Tiny, sham: Callable[[str], Path], body: str, expected: str) -> None:
    """The second of three does; the third has another process than the first."""
    sham(f"if 'full' in job['out']: {body}")
    made = jobs(tmp_path, tiny("bert"), "lora", "full", "bitfit")
    failed = run_all(made, Silent(), label="")
    assert failed == {"full-seed0": expected}
    row = row_of("full", [made[1]], failed, ["accuracy"])
    assert (row.runs, row.failures) == (0, (f"seed 0: {expected}",))
    first, third = (made[index].report() or {} for index in (0, 2))
    assert first["pid"] != third["pid"]


PARENT = """
import sys
from pathlib import Path
from lorakit.progress import Silent
from lorakit.trials import workers
from lorakit.trials.jobs import Job
from lorakit.trials.settings import read, recipe_for
folder = Path(sys.argv[1])
workers.lorakit_command = lambda words: [sys.executable, str(folder / "sham.py")]
given = read(folder / "recipe.yaml", [])
made = [Job(name, 0, recipe_for(given, name, 0), folder / "out") for name in ("lora", "full")]
workers.run_all(made, Silent(), label="", at_once=2)
"""
DEAF = "import signal; signal.signal(15, lambda *_: open(out.parents[1] / f'told-{out.name}', 'w')); "


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_stays_behind(tmp_path: Path, tiny: Tiny, sham: Callable[[str], Path], way: signal.Signals) -> None:
    """Where a second signal ends the parent, and its runs do not listen to the first; and where it is killed."""
    last = "time.sleep(600)" if way == signal.SIGTERM else "time.sleep(1)"
    sham(f"{DEAF}open(out.parents[1] / f'pid-{{os.getpid()}}', 'w'); {last}")
    recipe_file(tmp_path, tiny("bert"))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.PIPE)
    until(lambda: parent.poll() is not None or len([*tmp_path.glob("out/pid-*")]) == 2)
    pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("out/pid-*")]
    assert len(pids) == 2
    parent.send_signal(way)
    if way == signal.SIGTERM:
        until(lambda: len([*tmp_path.glob("out/told-*")]) == 2)
        assert parent.poll() is None
        parent.send_signal(way)
    parent.communicate(timeout=60)
    assert parent.returncode
    until(lambda: all(map(gone, pids)))


def test_workers_on_a_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "processors", lambda: 7)
    assert workers._environment(3)["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"], "the person's choice"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS" not in workers._environment(1)
    assert [workers._environment(count)["OMP_NUM_THREADS"] for count in (2, 3, 9)] == ["3", "2", "1"]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [devices(), devices(3)] == [[None], [None] * 3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices(1) == devices() == [None]
    with pytest.raises(RecipeError, match="there is 1 GPU, each for one run; give 1 or fewer"):
        devices(2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [devices(), devices(2)] == [["0", "1", "2"], ["0", "1"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-a,7")
    assert devices(2) == ["4", "GPU-a"]
    with pytest.raises(RecipeError, match="--jobs: 4 runs at once, but there are 3 GPUs"):
        devices(4)

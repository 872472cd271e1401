"""A fault at every call that changes a file: the process dies there, or the disk refuses there; then the run goes on.

Some of them here, every point of every scenario at least once by `make test-faults`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.conftest import POINTS
from faults.points import DIED, KINDS
from faults.runs import Whole, assert_same, copied, train, whole_run
from faults.server import ForkServer
from small_runs import change_state, recipe_file

from lorakit.training.state import newest_checkpoint

SCENARIOS = ("fresh", "stopped", "overwrite")
HARMLESS = {("unlink", ".lock"), ("rmdir", ".")}
"""When the disk refuses these at the end, the run has succeeded."""


@dataclass
class Scenario:
    """A command whose every change of a file is known.

    Args:
        start: What its directory holds before; None: there is none.
        options: Of the command, and of the one after the fault.
        points: What it does, in order.
    """

    start: Path | None
    options: tuple[str, str]
    points: list[tuple[str, str]]

    def begin(self, out: Path) -> Path:
        return out if self.start is None else copied(self.start, out)

    def plan(self) -> list[tuple[int, str]]:
        """(point, kind of fault), those first that are unlike the ones before."""
        keyed: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for index, (what, path) in enumerate(self.points):
            for kind in KINDS:
                if what == "write" or not kind.startswith("torn"):
                    keyed.setdefault((what, re.sub(r"step-\d+", "step-N", path)), []).append((index, kind))
        first, later = [], []
        for number, faults in enumerate(keyed.values()):
            turned = faults[number % len(faults) :] + faults[: number % len(faults)]
            first.append(turned[0])
            later += turned[1:]
        return _spread(first) + _spread(later)


def _spread(faults: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """In another order: any beginning of the list is spread over the whole run."""
    stride = next(n for n in (37, 41, 43) if len(faults) % n) if faults else 1
    return [faults[i * stride % len(faults)] for i in range(len(faults))]


@pytest.fixture(scope="session")
def whole(server: ForkServer, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Saved at 2, 3, 4 and 6, evaluated at 3 and 6."""
    sections = {"method": {"dropout": 0.1}, "train": {"eval_every": 3, "save_every": 2, "micro_batch_size": 3}}
    return whole_run(server, tmp_path_factory.mktemp("whole"), tiny("bert"), "classification", **sections)


@pytest.fixture(scope="session")
def scenarios(server: ForkServer, whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    """A new run; one that goes on in the middle of the evaluation at step 3; one that replaces another."""
    folder = tmp_path_factory.mktemp("starts")
    fresh = train(server, whole.recipe, folder / "fresh")
    at = fresh.points.index(("open", "checkpoints/<step-4>/optimizer.safetensors"))
    assert train(server, whole.recipe, folder / "stopped", point=(at, "die")).code == DIED
    best = {"step": None, "value": None, "waited": 0}
    change_state(folder / "stopped/checkpoints/step-3", evaluated=False, best=best)
    data = json.loads(whole.recipe.read_text())
    other = recipe_file(folder / "other", Path(data["model"]["base"]), train={"seed": 5})
    assert train(server, other, folder / "overwrite").code == 0
    found = {"fresh": Scenario(None, ("", "--resume"), fresh.points)}
    for name, options in (("stopped", ("--resume", "--resume")), ("overwrite", ("--overwrite", "--overwrite"))):
        traced = train(server, whole.recipe, copied(folder / name, folder / f"{name} traced"), options[0])
        assert_same(whole.directory, folder / f"{name} traced")
        found[name] = Scenario(folder / name, options, traced.points)
    return found


@pytest.mark.parametrize("number", range(POINTS))
def test_every_point(
    server: ForkServer,
    whole: Whole,
    scenarios: dict[str, Scenario],
    tmp_path: Path,
    number: int,
    record_property: Callable[[str, object], None],
) -> None:
    name = SCENARIOS[number % len(SCENARIOS)]
    plan = scenarios[name].plan()
    if number // len(SCENARIOS) >= len(plan):
        pytest.skip("every point of this scenario has had every fault")
    index, kind = plan[number // len(SCENARIOS)]
    what, path = scenarios[name].points[index]
    out = scenarios[name].begin(tmp_path / "run")
    options = [option for option in scenarios[name].options[:1] if option]
    ended = train(server, whole.recipe, out, *options, point=(index, kind))
    record_property("fault", f"{kind}: {what} ({name})")
    where = f"{name}: {kind} at {index}, {what} {path}: {ended}"
    if kind in ("die", "torn"):
        assert ended.code == DIED, where
    else:
        assert ended.code == (0 if (what, path) in HARMLESS else 1), where
        assert "unexpected" not in ended.output, where
        assert ended.code == 0 or "cannot write: " in ended.output.splitlines()[-1], where
    if name != "overwrite":
        _assert_nothing_lost(scenarios[name], index, out)
    ended = train(server, whole.recipe, out, scenarios[name].options[1])
    assert ended.code == 0, f"{where}\n{ended}"
    assert_same(whole.directory, out)


def _assert_nothing_lost(scenario: Scenario, index: int, out: Path) -> None:
    """The newest checkpoint is the last one that had its name."""
    before = [3] if scenario.start is not None else []
    before += [int(p.rpartition("-")[2]) for w, p in scenario.points[:index] if w == "rename"]
    newest = newest_checkpoint(out)
    assert (newest[1].step if newest else 0) == max(before, default=0)


def test_what_is_renamed_is_on_the_disk_before_and_its_name_after(scenarios: dict[str, Scenario]) -> None:
    """Against power failures, which no fault here can play: the order of the calls."""
    for scenario in scenarios.values():
        renames = [i for i, (what, _) in enumerate(scenario.points) if what in ("rename", "replace")]
        assert len(renames) > 10
        for at in renames:
            _assert_synced(scenario.points, at)


def _assert_synced(points: list[tuple[str, str]], at: int) -> None:
    what, path = points[at]
    final = Path(path)
    beside = str(final.with_name(f"<{final.name}>"))
    began = max(i for i in range(at) if points[i] == ("mkdir" if what == "rename" else "create", beside))
    written = {p for w, p in points[began:at] if w in ("write", "replace") and p.startswith(beside)}
    written |= {p for w, p in points[began:at] if w == "mkdir"}
    written = {p for p in written if "<" not in p.removeprefix(beside)}  # its name has been replaced since
    assert written
    for file in written:
        changes = [
            i for i in range(began, at) if points[i][1] == file and points[i][0] in ("write", "replace", "mkdir")
        ]
        assert ("fsync", file) in points[changes[-1] : at], f"{file} is not synced before {path} is renamed"
    folder = str(final.parent)
    assert points[at + 1] == ("fsync", folder), f"the name of {path} is not synced"
    if what == "rename" and not path.startswith(".rehearsal"):
        lines = max(i for i in range(at) if points[i] in (("write", "metrics.jsonl"), ("replace", "metrics.jsonl")))
        assert ("fsync", "metrics.jsonl") in points[lines:at] or points[lines][0] == "replace"


def test_made_directories_are_synced_and_old_checkpoints_go_last(scenarios: dict[str, Scenario]) -> None:
    points = scenarios["fresh"].points
    for folder in ("checkpoints", "predictions", "plots"):
        assert points[points.index(("mkdir", folder)) + 1] == ("fsync", ".")
    gone = points.index(("rmdir", "checkpoints/step-2"))
    renamed = points.index(("rename", "checkpoints/step-3"))
    assert points[renamed + 1] == ("fsync", "checkpoints")
    assert gone > renamed + 1

"""Runs that are killed, once or several times in a row, at moments drawn from a seed, and then resumed.

20 here; `make test-faults` draws 1,000.
"""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import KILLS
from faults.runs import Whole, assert_same, drawn_run, train
from faults.server import ForkServer

RECIPES = 8 if KILLS <= 100 else 20
ENDS: dict[signal.Signals, set[int]] = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {128 + signal.SIGTERM, -signal.SIGTERM},  # the latter before there is anything to save
    signal.SIGINT: {128 + signal.SIGINT},
}
_made: dict[int, Whole] = {}


@pytest.fixture(scope="session")
def whole(
    server: ForkServer, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Whole]:
    """The uninterrupted run of a drawn recipe."""

    def made(seed: int) -> Whole:
        if seed not in _made:
            _made[seed] = drawn_run(server, tmp_path_factory.mktemp("whole"), tiny, seed)
        return _made[seed]

    return made


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.xdist_group(f"recipe {seed % RECIPES}")) for seed in range(KILLS)]
)
def test_killed_and_resumed(
    server: ForkServer,
    whole: Callable[[int], Whole],
    tmp_path: Path,
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    uninterrupted, draw, out = whole(seed % RECIPES), random.Random(f"kill {seed}"), tmp_path / "run"
    for attempt in range(draw.choice([1, 1, 1, 2, 3])):
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        moment = _moment(draw, uninterrupted, 0.5 if attempt else 1.0)
        options = ["--resume"] if attempt else []
        ended = train(server, uninterrupted.recipe, out, *options, kill=(*moment, number))
        assert ended.code in ENDS[number] | {0}, ended  # 0: it was quicker
        assert "unexpected" not in ended.output
        assert "escaped" not in ended.output
        record_property("fault", f"{number.name} in: {ended.phase}" if ended.code else "came too late")
    ended = train(server, uninterrupted.recipe, out, "--resume")
    assert ended.code == 0, ended
    assert_same(uninterrupted.directory, out)


def _moment(draw: random.Random, whole: Whole, share: float) -> tuple[int, float]:
    """At any time, or shortly after a call that changes a file: there it is that something can be torn."""
    if draw.random() < 0.5:
        return 0, draw.random() * share * whole.ended.seconds
    return draw.randrange(int(share * len(whole.ended.points))), draw.choice([0.0, 0.005, 0.05])

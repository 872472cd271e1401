"""Bars on a terminal, lines in a pipe, silence elsewhere."""

import io

import pytest
from rich.console import Console

from lorakit import progress
from lorakit.progress import Live, Plain, Silent, for_terminal


class Clock:
    """Time that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_plain_bar_speaks_every_ten_seconds_and_when_full(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Plain().bar("encode train", 40) as bar:
        for seconds, count in ((4, 10), (5, 10), (2, 10), (1, 10)):
            clock.now += seconds
            bar.advance(count, loss="0.5")
    assert capsys.readouterr().out.splitlines() == [
        "encode train  30/40 rows  2.7 rows/s  loss 0.5",
        "encode train  40/40 rows  3.3 rows/s  loss 0.5",
    ]


def test_slow_work_says_how_long_each_takes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Plain().bar("sweep", 5, "runs", done=2) as bar:
        for seconds, count in ((20, 0), (70, 2)):
            clock.now += seconds
            bar.advance(count)
    assert capsys.readouterr().out.splitlines() == ["sweep  2/5 runs", "sweep  4/5 runs  45 s each"]


def test_plain_bar_of_quick_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Plain().bar("encode", 2) as bar:
        clock.now += 1
        bar.advance(2)
    Plain().say("done")
    assert capsys.readouterr().out == "done\n"


def test_live_bar_shows_the_speed_since_this_process_began(clock: Clock) -> None:
    out = io.StringIO()
    with Live(Console(file=out, force_terminal=True, width=120, color_system=None)).bar("generate", 40, done=20) as bar:
        clock.now += 4
        bar.advance(10)
    assert "30/40 rows  2.5 rows/s" in out.getvalue()


def test_live_bar_shows_values_and_a_bar_inside_a_bar() -> None:
    out = io.StringIO()
    live = Live(Console(file=out, force_terminal=True, width=120, color_system=None))
    with live.bar("train", 3, "steps") as outer:
        outer.advance(2, loss="0.123")
        with live.bar("evaluate", 5) as inner:
            inner.advance(5)
        live.say("[step 2] saved")
        outer.advance()
    shown = out.getvalue()
    for text in ("train", "3/3", "steps", "loss 0.123", "evaluate", "5/5", "[step 2] saved"):
        assert text in shown


def test_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Silent().bar("train", 3) as bar:
        bar.advance(3, loss="1")
    Silent().say("x")
    assert capsys.readouterr() == ("", "")


def test_for_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(for_terminal(main_process=False), Silent)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(for_terminal(), Plain)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert isinstance(for_terminal(), Live)

"""Telling a person what goes on: a live bar on a terminal, plain lines elsewhere, silence on the other processes."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0


class Bar(Protocol):
    """One task with a known length."""

    def advance(self, count: int = 1, **values: str) -> None:
        """So much more is done; `values` are shown beside (loss="0.123")."""
        ...


class Progress(Protocol):
    """Where messages and bars go."""

    def say(self, text: str) -> None:
        """One line for the person."""
        ...

    def bar(self, label: str, total: int, unit: str = "rows", done: int = 0) -> AbstractContextManager[Bar]:
        """A bar for work that may take over two seconds, of which an earlier process has done some."""
        ...


class Silent:
    """Says nothing: for tests, and for every process but the first."""

    def say(self, text: str) -> None:
        """Nothing."""

    def advance(self, count: int = 1, **values: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A bar that shows nothing."""
        yield self


class Plain:
    """Lines for a log file: a bar prints at most every ten seconds, and once when it is full."""

    def say(self, text: str) -> None:
        """Print the line."""
        print(text, flush=True)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A bar as occasional lines."""
        yield _PlainBar(label, total, unit, done)


class _PlainBar:
    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.before = done
        self.began = self.shown = time.monotonic()

    def advance(self, count: int = 1, **values: str) -> None:
        self.done += count
        now = time.monotonic()
        slow_enough = now - self.shown >= _SECONDS_BETWEEN_LINES
        if slow_enough or (self.done >= self.total and now - self.began >= 2):
            self.shown = now
            beside = "".join(f"  {name} {value}" for name, value in values.items())
            speed = _speed(self.done - self.before, now - self.began, self.unit)
            print(f"{self.label}  {self.done}/{self.total} {self.unit}{speed}{beside}", flush=True)


class Live:
    """A bar with speed and time left on a terminal.

    Args:
        console: Where to.
    """

    def __init__(self, console: "Console") -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print the line above any bar."""
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
        """A live bar; it leaves its last state on the screen."""
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:<12}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn(f"{unit}  {{task.fields[speed]}}{{task.fields[beside]}}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=self.console, refresh_per_second=5) as shown:
            yield _LiveBar(shown, shown.add_task(label, total=total, completed=done, beside="", speed=""), unit)


class _LiveBar:
    def __init__(self, shown: "progress.Progress", task: "progress.TaskID", unit: str) -> None:
        self.shown, self.task, self.unit = shown, task, unit
        self.done, self.began = 0, time.monotonic()

    def advance(self, count: int = 1, **values: str) -> None:
        self.done += count
        fields: dict[str, Any] = {"speed": _speed(self.done, time.monotonic() - self.began, self.unit).strip()}
        if values:
            fields["beside"] = "".join(f"  {name} {value}" for name, value in values.items())
        self.shown.update(self.task, advance=count, **fields)


def _speed(done: int, seconds: float, unit: str) -> str:
    """Units in a second, or seconds for a unit, whichever has a digit to show; nothing before the first is done."""
    if not done:
        return ""
    rate = done / max(seconds, 1e-9)
    return f"  {rate:.1f} {unit}/s" if rate >= 0.5 else f"  {1 / rate:,.0f} s each"


def for_terminal(main_process: bool = True) -> Progress:
    """Live on a terminal, plain lines in a pipe, silent where another process speaks."""
    if not main_process:
        return Silent()
    if not sys.stdout.isatty():
        return Plain()
    from rich.console import Console

    return Live(Console())

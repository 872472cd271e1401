"""One fork server per test process, and the counts of what has been survived."""

import os
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
from faults.server import ForkServer

KILLS = int(os.environ.get("LORAKIT_KILLS", "20"))
POINTS = int(os.environ.get("LORAKIT_POINTS", "30"))
FUZZ = int(os.environ.get("LORAKIT_FUZZ", "240"))


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """The fork server; torch and transformers are in it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc and memfd")
    started = ForkServer()
    yield started
    started.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many faults of each kind there were, and where they came."""
    counts: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            counts.update(value for name, value in getattr(report, "user_properties", []) if name == "fault")
    if counts:
        terminalreporter.section("faults")
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:6d}  {name}")

"""The demo: fine-tune a real pretrained model on made-up data, and see that it got better.

    make demo

Each step is a command that you can type yourself; it is shown before it runs. Everything is written below demo/.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path("demo")
RUN = DEMO / "run"
SHOWN = 3


def main() -> None:
    os.chdir(ROOT)
    began = time.monotonic()
    for name in ("run", "merged", "peft"):
        shutil.rmtree(DEMO / name, ignore_errors=True)
    data = [sys.executable, "scripts/make_demo_data.py", "--out", str(DEMO / "data")]
    step("Made-up restaurants, in the layout of the E2E challenge; test descriptions are held out", data)
    lorakit("Fine-tune SmolLM2-135M with LoRA", "train", "recipes/demo.yaml", "--out", str(RUN))
    lorakit("Before: the bare base on the held-out test", "eval", str(RUN), "--split", "test", "--base")
    lorakit("After: the same with the adapter", "eval", str(RUN), "--split", "test")
    lorakit("Deployable weights, reloaded and compared", "merge", str(RUN), "--out", str(DEMO / "merged"))
    lorakit("The adapter for PEFT", "export", str(RUN), "--to", "peft", "--out", str(DEMO / "peft"))
    compare()
    print(
        f"\ndone in {time.monotonic() - began:.0f} s: the adapter and report.md are in {RUN}, "
        f"the merged model in {DEMO / 'merged'}, the adapter for PEFT in {DEMO / 'peft'}"
    )


def lorakit(title: str, *arguments: str) -> None:
    step(title, [str(Path(sys.executable).with_name("lorakit")), *arguments])


def step(title: str, command: list[str]) -> None:
    print(f"\n# {title}\n$ {shlex.join([Path(command[0]).name, *command[1:]])}", flush=True)
    subprocess.run(command, check=True)


def compare() -> None:
    """Base and adapted output side by side."""
    base, adapted = (read(RUN / "predictions" / name) for name in ("base-test.jsonl", "test.jsonl"))
    table = Table("meaning", "base", "adapted", "a reference", title="Held-out test", show_lines=True)
    for before, after in list(zip(base, adapted, strict=True))[:SHOWN]:
        table.add_row(
            *map(brief, (before["prompt"], before["prediction"], after["prediction"], after["references"][0]))
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def brief(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 160 else words[:157] + "..."


if __name__ == "__main__":
    main()

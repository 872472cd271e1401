"""LoRA beside full fine-tuning on small GLUE tasks, with several seeds: the table of docs/results.md.

python scripts/glue_table.py --data DIR --out runs/glue [--seeds 3] [--rows 2000] [--jobs 1]

Each run is a `lorakit train` in a process of its own, so that its time and memory are its own. A run that is there
already is not repeated, so the table can be interrupted. --data holds the official folders (CoLA/, STS-B/, …).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from lorakit.report import shown

RECIPE = Path(__file__).parents[1] / "recipes" / "minilm_mrpc.yaml"
TASKS = {"stsb": "pearson", "mrpc": "accuracy", "rte": "accuracy", "cola": "matthews", "sst2": "accuracy"}
METHODS = {
    "lora": ["method={name: lora, rank: 8, alpha: 16, targets: [all-linear]}", "train.lr=5e-4"],
    "full": ["method={name: full}", "train.lr=1e-4"],
}
Report = dict[str, Any]


def train(task: str, method: str, seed: int, options: argparse.Namespace) -> Report:
    """Run it, unless it is there; gives its report."""
    out = options.out / f"{task}-{method}-{seed}"
    if not (out / "report.json").is_file():
        rows = f"task.limit={{train: {options.rows}}}"
        data = [f"task.subset={task}", f"task.path={options.data}", rows]
        size = [f"train.epochs={options.epochs}", f"train.batch_size={options.batch}", f"train.seed={seed}"]
        size.append("train.warmup={ratio: 0.1}")
        command = [sys.executable, "-m", "lorakit", "train", str(RECIPE), "--out", str(out), "--overwrite"]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(
            [*command, *data, *size, *METHODS[method]], env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{out}: {done.stderr.strip()}")
    report: Report = json.loads((out / "report.json").read_text())
    print(f"{out.name}: {report['metrics']['validation']}, {report['seconds']:.0f} s", flush=True)
    return report


def line(task: str, reports: dict[str, list[Report]]) -> str:
    """One task: each method's metric, mean ± standard deviation, and the ratios of what it took."""
    cells = [task, TASKS[task]]
    for found in reports.values():
        values = [report["metrics"]["validation"][TASKS[task]] for report in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{shown(TASKS[task], statistics.mean(values))} ± {100 * spread:.2f}")
    for key in ("seconds", "peak_memory_bytes"):
        lora, full = (statistics.mean(report[key] for report in reports[method]) for method in METHODS)
        cells.append(f"{lora / full:.2f}")
    return f"| {' | '.join(cells)} |"


def sizes(reports: dict[str, list[Report]]) -> list[str]:
    """What each method trains and leaves on the disk."""
    lines = ["| method | trained parameters | of these, the head | adapter.safetensors |", "|---|---|---|---|"]
    for method, (report, *_) in reports.items():
        counts = report["parameters"]
        size = f"{report['adapter_bytes'] / 2**20:.2f} MiB"
        lines.append(f"| {method} | {counts['trainable']:,} | {counts['head']:,} | {size} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    plan = list(product(options.tasks, range(options.seeds), METHODS))
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda run: train(run[0], run[2], run[1], options), plan))
    found: dict[tuple[str, str], list[Report]] = {
        (task, method): [] for task, method in product(options.tasks, METHODS)
    }
    for (task, _, method), report in zip(plan, done, strict=True):
        found[task, method].append(report)
    print("\n| task | metric | LoRA | full | time, LoRA / full | peak memory, LoRA / full |\n|---|---|---|---|---|---|")
    for task in options.tasks:
        print(line(task, {method: found[task, method] for method in METHODS}))
    last = options.tasks[-1]
    print("\n" + "\n".join(sizes({method: found[last, method] for method in METHODS})))


if __name__ == "__main__":
    main()

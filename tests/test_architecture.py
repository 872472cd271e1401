"""Imports go one way, and files and functions stay small enough to read."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lorakit"
FILE_LINES = 400
FUNCTION_LINES = 60

LAYERS = (
    "lorakit",
    "errors",
    "section",
    "runtime",
    "lock",
    "launch",
    "world",
    "weights",
    "seal",
    "yamltree",
    "recipe_errors",
    "progress",
    "console",
    "arch",
    "surgery",
    "nf4",
    "targets",
    "configs",
    "bases",
    "file_names",
    "kept",
    "task_head",
    "data.rows",
    "data.slots",
    "layers.adapted",
    "layers.low_rank",
    "layers.*",
    "layers",
    "methods.base",
    "methods.*",
    "methods",
    "metrics.*",
    "metrics",
    "data",
    "data.*",
    "tasks.base",
    "tasks.*",
    "tasks",
    "norms",
    "kernels",
    "dropout",
    "packing",
    "row_attention",
    "varlen",
    "attention",
    "last_block",
    "fast",
    "model",
    "tiny",
    "schedule",
    "variants",
    "references",
    "recipe",
    "checkpoint",
    "objective",
    "decode",
    "generate",
    "choices",
    "room",
    "records",
    "journal",
    "splits",
    "evaluate",
    "ledger",
    "lengths",
    "memory",
    "modules",
    "head_bias",
    "meter",
    "outline",
    "forecast",
    "session",
    "latency",
    "scoring.base",
    "scoring.*",
    "scoring",
    "report.*",
    "report",
    "training",
    "training.*",
    "fit",
    "plan",
    "measure",
    "plan_view",
    "predict",
    "merge_plan",
    "merge_check",
    "merge_routes",
    "merge",
    "export.pairs",
    "export.truncate",
    "export.card",
    "export.base",
    "export.serving",
    "export.*",
    "export",
    "compose",
    "imports.base",
    "imports.*",
    "imports",
    "combine",
    "adapters",
    "smoke",
    "scaffold",
    "scaffold.*",
    "check",
    "trials",
    "trials.jobs",
    "trials.*",
    "compare.*",
    "compare",
    "sweep.axes",
    "sweep.points",
    "sweep.budget",
    "sweep.prepare",
    "sweep.found",
    "sweep.table",
    "sweep.*",
    "sweep",
    "reproduce.*",
    "reproduce",
    "analysis.sites",
    "analysis.spectrum",
    "analysis.subspace",
    "analysis.amplification",
    "analysis.found",
    "analysis.*",
    "analysis",
    "cli.*",
    "cli",
    "__main__",
)
"""From the bottom up. A module imports from its own layer and from those before it; of the patterns that match a module
the first without a star counts, else the first."""


def module_name(file: Path, package: Path = PACKAGE) -> str:
    """`tasks/glue.py` → "tasks.glue", `tasks/__init__.py` → "tasks", `__init__.py` → "lorakit"."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "lorakit"


def imported(source: str, modules: Iterable[str]) -> set[str]:
    """Modules of the package that a source imports: at its top, inside functions, and for types only."""
    known = set(modules)
    found = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "lorakit":
                short = name.removeprefix("lorakit").removeprefix(".")
                while short not in known and short:
                    short = short.rpartition(".")[0]
                found.add(short or "lorakit")
    return found


def graph() -> dict[str, set[str]]:
    files = {module_name(file): file for file in PACKAGE.rglob("*.py")}
    return {module: imported(file.read_text(), files) for module, file in files.items()}


def layer(module: str) -> int | None:
    matching = [pattern for pattern in LAYERS if fnmatchcase(module, pattern)]
    exact = [pattern for pattern in matching if "*" not in pattern]
    return LAYERS.index((exact or matching)[0]) if matching else None


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports of what stands above."""
    levels = {module: layer(module) for module in edges}
    return [
        f"{module} imports {other}, which stands above it in LAYERS"
        for module, others in sorted(edges.items())
        for other in sorted(others)
        if (levels[module] or 0) < (levels[other] or 0)
    ]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """A way from some module back to itself; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(edges[module]):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := walk(module, []))), [])


def test_every_module_has_a_layer() -> None:
    unknown = sorted(module for module in graph() if layer(module) is None)
    assert not unknown, f"add {', '.join(unknown)} to LAYERS in {Path(__file__).name}, where they belong"


def test_imports_go_one_way() -> None:
    assert upward(graph()) == []


def test_no_import_cycle() -> None:
    assert " → ".join(cycle(graph())) == ""


def test_the_checks_can_fail() -> None:
    modules = ["lorakit", "errors", "arch", "model", "tasks", "tasks.glue", "methods.lora", "methods.full"]
    source = """
from lorakit import __version__, arch
from lorakit.tasks import TASKS
from lorakit.tasks.glue import GLUE
import lorakit.errors, torch

def inner():
    from lorakit.model import prepare
"""
    assert imported(source, modules) == {"lorakit", "arch", "tasks", "tasks.glue", "errors", "model"}
    edges = {module: set[str]() for module in modules}
    assert upward(edges) == cycle(edges) == []
    edges["methods.lora"] = {"methods.full", "arch"}
    assert upward(edges) == cycle(edges) == []
    edges["methods.full"] = {"methods.lora"}
    assert upward(edges) == []
    assert cycle(edges) == ["methods.full", "methods.lora", "methods.full"]
    edges["arch"] = {"model"}
    assert upward(edges) == ["arch imports model, which stands above it in LAYERS"]
    assert layer("nonesuch") is None


@pytest.mark.parametrize("module", ["lorakit", "lorakit.cli"])
def test_the_command_line_answers_at_once(module: str) -> None:
    """`lorakit --help` loads none of what takes seconds."""
    heavy = "{'torch', 'transformers', 'datasets', 'accelerate', 'sklearn', 'scipy', 'pyarrow', 'matplotlib'}"
    code = f"import sys, {module}; print(sorted({heavy} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout == "[]\n", ran.stderr


def test_files_are_short() -> None:
    lines = {module_name(file): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {module: count for module, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES:
                    long[f"{module_name(file)}.{node.name}"] = count
    assert long == {}

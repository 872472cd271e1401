"""Write the tables of docs/reproduction.md from the recipes: every reported row, and the command that runs it.

make recipes
"""

import os
from collections.abc import Iterable
from pathlib import Path

from lorakit.recipe import Recipe, load
from lorakit.references import Paper
from lorakit.reproduce.entries import own_name, task_title
from lorakit.reproduce.judge import printed
from lorakit.trials.settings import paper_of

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- From here on written by `make recipes`. -->"
ORDER = ["mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb", "e2e", "wikisql", "samsum"]
"""Of tasks, as the paper's tables have them."""
BASES = ["roberta-base", "roberta-large", "deberta", "gpt2-medium", "gpt2-large"]
"""In the paper's order; others come after."""
NOT_JUDGED = "°"


def page(before: str, found: Iterable[Recipe]) -> str:
    """What was written by hand, and after the mark one table per source and base."""
    families: dict[tuple[str, str], list[Recipe]] = {}
    for recipe in found:
        if recipe.paper:
            families.setdefault((recipe.paper.source, recipe.model.base), []).append(recipe)
    order = sorted(families, key=_order)
    parts = [family(*key, sorted(families[key], key=_place)) for key in order]
    return "\n".join([before.partition(MARK)[0] + MARK, *parts])


def _order(key: tuple[str, str]) -> tuple[bool, str, int]:
    source, base = key
    known = [i for i, name in enumerate(BASES) if name in base]
    return not source.startswith("Table"), source.partition(",")[0], known[0] if known else len(BASES)


def family(source: str, base: str, recipes: list[Recipe]) -> str:
    """The table of one base in one table of the source."""
    columns = {(recipe.name, metric): None for recipe in recipes for metric in _metrics(recipe)}
    titles = [task_title(recipe) for recipe in recipes]
    by_name = {recipe.name: recipe for recipe in recipes}
    single = len(recipes) == 1
    heads = [metric if single else f"{task_title(by_name[name])} {metric}" for name, metric in columns]
    rows: dict[tuple[str, str, str], dict[str, Paper]] = {}
    for recipe in recipes:
        for name in [own_name(recipe), *recipe.methods]:
            if row := paper_of(recipe, name):
                rows.setdefault((name, row.label or name, row.params or "–"), {})[recipe.name] = row
    header = ["row", "`--methods`", "parameters", *heads]
    lines = [f"## {source}: {base}\n", f"On {', '.join(dict.fromkeys(titles))}:\n", "```", command(recipes), "```\n"]
    lines += ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for (name, label, params), cells in rows.items():
        numbers = [_number(cells.get(recipe), metric) for recipe, metric in columns]
        lines.append("| " + " | ".join([label.replace("*", "\\*"), name, params, *numbers]) + " |")
    known = [(label, row) for (_, label, _), cells in rows.items() for row in cells.values()]
    said = [f"- {label}: {row.known}" for label, row in known if row.known]
    said += [f"- {label} cannot be run: {row.unavailable}." for label, row in known if row.unavailable]
    lines += ["", *dict.fromkeys(text.replace("*", "\\*") for text in said)] if said else []
    return "\n".join(lines) + "\n"


def command(recipes: list[Recipe]) -> str:
    """What runs all of it."""
    names = [recipe.name for recipe in recipes]
    start = os.path.commonprefix(names)
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]
    files = [f"recipes/{names[0]}.yaml"]
    if len(names) > 1:
        middles = ",".join(name[len(start) : len(name) - len(end)] for name in names)
        files = [f"recipes/{start}{{{middles}}}{end}.yaml"]
    several = any(own.paper for recipe in recipes for own in recipe.methods.values())
    return " ".join(["lorakit reproduce", *files, *(["--methods all"] if several else [])])


def _number(row: Paper | None, metric: str) -> str:
    if row is None:
        return "–"
    if metric != row.metric:
        return printed(metric, row.others[metric]) if metric in row.others else "–"
    spread = f" ± {printed(metric, row.std)}" if row.std is not None else ""
    return f"{printed(metric, row.value)}{spread}" + ("" if row.tolerance is not None else f" {NOT_JUDGED}")


def _metrics(recipe: Recipe) -> list[str]:
    assert recipe.paper is not None
    return [recipe.paper.metric, *recipe.paper.others]


def _place(recipe: Recipe) -> int:
    title = task_title(recipe)
    return ORDER.index(title) if title in ORDER else len(ORDER)


def shipped() -> list[Recipe]:
    """All recipes, by name."""
    return [load(file) for file in sorted((ROOT / "recipes").glob("*.yaml"))]


def main() -> None:
    docs = ROOT / "docs" / "reproduction.md"
    docs.write_text(page(docs.read_text(), shipped()))


if __name__ == "__main__":
    main()

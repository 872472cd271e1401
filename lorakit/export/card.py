"""The model card: the README.md in every export, with the fields that model hubs read at its top."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.report.blocks import Code, Table, Text
from lorakit.report.facts import metric_rows, paper_line
from lorakit.report.markdown import block, escape
from lorakit.yamltree import render

if TYPE_CHECKING:
    from lorakit.checkpoint import Opened

CARD = "README.md"
PIPELINES = {
    "generation": "text-generation",
    "classification": "text-classification",
    "regression": "text-classification",
}
"""Kind of task → the hub's name of what the model is for."""


@dataclass(frozen=True)
class Facts:
    """What the card says of the export itself.

    Args:
        format: Its name.
        library: The hub's name of the library that loads it; None where it has none.
        loading: How it is loaded, in Markdown.
        proved: What was read back and compared, such as "4 modules".
        difference: The largest relative difference that this found.
    """

    format: str
    library: str | None
    loading: str
    proved: str
    difference: float


def card(opened: "Opened", facts: Facts, license: str | None = None, notes: Sequence[str] = ()) -> str:
    """The model card of an exported adapter; it names no path of this machine.

    Args:
        opened: The run; its frozen part may be a skeleton.
        facts: About the export.
        license: The hub's name of a licence, such as apache-2.0; None: it is left to the base's.
        notes: Sentences about how the adapter came about, such as the base's quantisation or a truncation.
    """
    recipe = opened.recipe
    sections = [
        ("", _origin(opened, facts)),
        ("How to load it", facts.loading.strip() + "\n" + _prompts(opened)),
        ("Notes", "".join(f"- {escape(note)}\n" for note in notes)),
        ("Scores", _scores(opened)),
        ("What was proved", _proof(facts)),
        ("Recipe", block(Code(render(public(opened)), "yaml"))),
        ("Licence", "" if license else _licence(opened)),
    ]
    text = "\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections if body)
    return f"---\n{render(_fields(opened, facts, license))}---\n\n# {recipe.name}\n\n{text}"


def public(opened: "Opened") -> dict[str, Any]:
    """The resolved recipe, with the last component of every local path in the path's place."""
    recipe = opened.recipe
    fields: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True)
    fields["model"]["base"] = opened.prepared.located.name
    for place in recipe.task.places:
        if (value := fields["task"].get(place)) and not value.startswith("hub:"):
            fields["task"][place] = Path(value).name
    if started := fields["train"].get("init_from"):
        started["run"] = Path(started["run"]).name
    return fields


def _fields(opened: "Opened", facts: Facts, license: str | None) -> dict[str, Any]:
    """The card's head. `base_model` must be an id of the hub, so that a local base is not named there."""
    located = opened.prepared.located
    hub = {"base_model": located.name} if located.revision else {}
    library = {"library_name": facts.library} if facts.library else {}
    unknown = {"license": "other", "license_name": "that-of-the-base"}
    if located.revision:
        unknown["license_link"] = f"https://huggingface.co/{located.name}"
    return {
        **hub,
        **library,
        **({"license": license} if license else unknown),
        "pipeline_tag": PIPELINES[opened.recipe.task.kind],
        "tags": ["lora", "lorakit", *(["gguf"] if facts.format == "gguf" else [])],
    }


def _origin(opened: "Opened", facts: Facts) -> str:
    from lorakit import __version__

    located = opened.prepared.located
    trained = sum(value.numel() for value in opened.state.values())
    rows = [
        ("base", located.name),
        *([("its revision", located.revision)] if located.revision else []),
        ("fingerprint of the base's adapted tensors", opened.prepared.fingerprint()),
        ("method", ", ".join(method.name for method in opened.recipe.method)),
        ("task", opened.recipe.task.name),
        ("parameters", f"{trained:,}"),
        *([("checkpoint", opened.checkpoint)] if opened.checkpoint else []),
    ]
    text = (
        f"An adapter of {located.name}, trained with lorakit and exported by lorakit {__version__} in the format "
        f"{facts.format}. It does nothing without that base."
    )
    return block(Text(text)) + "\n" + block(Table(("", ""), rows, numbers=False))


def _prompts(opened: "Opened") -> str:
    if opened.recipe.task.kind != "generation":
        return ""
    return "\nPrompts must look as they did in training: see `task` in the recipe below.\n"


def _scores(opened: "Opened") -> str:
    if opened.checkpoint:
        return f"None: the run's report is of the adapter that it published, and this is {opened.checkpoint}.\n"
    file = opened.directory / "report.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if not report.get("metrics"):
        return "The run has no report.\n"
    header, rows = metric_rows(report["metrics"])
    paper = paper_line(report)
    parts = [block(Table(header, rows, numbers=True)), *([block(Text(paper))] if paper else [])]
    return "\n".join(parts)


def _proof(facts: Facts) -> str:
    equal = "every module's ΔW is the run's to the bit"
    if facts.difference:
        equal = f"no module's ΔW differs from the run's by more than {facts.difference:.1e} of its largest element"
    return f"These files were read back after they were written: they hold {facts.proved}, and {equal}.\n"


def _licence(opened: "Opened") -> str:
    base = escape(opened.prepared.located.name)
    return (
        f"An adapter is made from its base and from its data: what the licence of {base} asks of derived work, it asks "
        "of this. Set `license` at the top of this file (`lorakit export --license`) once you know which.\n"
    )

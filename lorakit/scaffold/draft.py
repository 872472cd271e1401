"""A recipe drafted for a person: for a data file, for one of the built-in tasks, or as a form to fill in.

lorakit init --data reviews.csv
"""

import difflib
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from lorakit.data.readers import read_records
from lorakit.data.rows import TextRow
from lorakit.errors import RecipeError
from lorakit.progress import Progress, Silent
from lorakit.recipe import load
from lorakit.runtime import write_atomic
from lorakit.scaffold import family, settings
from lorakit.scaffold.columns import Table, look
from lorakit.scaffold.detect import Reading, count, detect
from lorakit.scaffold.layout import lay_out
from lorakit.scaffold.lengths import Lengths, measure
from lorakit.scaffold.settings import Setting
from lorakit.tasks import TASKS
from lorakit.tasks.base import Kind, Split, Task
from lorakit.tasks.custom import KINDS, Custom, DataKind

CUSTOM = "custom"
PLACES = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Split → how files beside the training file call it."""
SILENT = Silent()
_LARGE = 10_000_000
"""Bytes; a file of this size is read in about two seconds."""
PLAIN_NAMES = ("train", "training", "data", "dataset")
"""Stems that say nothing: the folder's name is taken instead."""


@dataclass(frozen=True)
class Draft:
    """What `init` found and chose.

    Args:
        name: For the recipe, and its file.
        text: The YAML.
        columns: Header and rows of the table that shows what was detected; empty without a data file.
        notes: What a person should know.
    """

    name: str
    text: str
    columns: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """What the choice of settings depends on.

    Args:
        name: For the recipe.
        kind: What the model must produce.
        family: Of the base.
        lengths: Of the training rows; None where they were not read.
        rows: Split → rows, of those that were read.
    """

    name: str
    kind: Kind
    family: family.Family
    lengths: Lengths | None = None
    rows: dict[str, int] | None = None


def draft(
    data: Path | None,
    base: str | None,
    task: str = CUSTOM,
    kind: DataKind | None = None,
    progress: Progress = SILENT,
) -> Draft:
    """Draft a recipe.

    Args:
        data: A file of rows; for a built-in task the folder of its official files. None: a form to fill in.
        base: The base model; None for a small one that fits the kind.
        task: One of `TASKS` that has rows.
        kind: What the rows are, where the file leaves it open.
        progress: Told of a file that takes long.

    Raises:
        RecipeError: There is no such task, or the base cannot do it.
        DataError: The file cannot be read, or no kind of row fits it.
        ModelError: A local base is missing.
    """
    known = [name for name, section in TASKS.items() if section.has_rows]
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise RecipeError(f"--task {task}: there is no such task{hint} Allowed: {', '.join(known)}")
    if task != CUSTOM:
        if kind is not None:
            raise RecipeError(f"--kind: the task {task} knows what its rows are; leave it out")
        return _of_task(task, data, base)
    if data is None:
        return _form(base, kind or "classification")
    if data.is_dir():
        own = ", ".join(name for name in known if name != CUSTOM)
        raise RecipeError(f"--data {data}: is a folder; name a file in it, or say whose it is: --task {own}")
    if data.is_file() and data.stat().st_size > _LARGE:
        progress.say(f"reading {data}: {data.stat().st_size / 1e6:,.0f} MB")
    return _of_file(data, base, kind)


def save(drafted: Draft, out: Path, overwrite: bool) -> None:
    """Write a draft under a name, once it has been loaded as a recipe of that name.

    Raises:
        RecipeError: The file is there and may not be replaced, or the recipe does not load.
    """
    if out.exists() and not overwrite:
        raise RecipeError(f"{out} is there already: choose another name with --out, or add --overwrite")
    check(drafted, out.name)
    write_atomic(out, drafted.text)


def check(drafted: Draft, name: str) -> None:
    """Load a draft as a recipe file.

    Args:
        drafted: The draft.
        name: Of the file.

    Raises:
        RecipeError: It does not load.
    """
    with tempfile.TemporaryDirectory(prefix="lorakit-init-") as scratch:
        file = Path(scratch) / name
        file.write_text(drafted.text, encoding="utf-8")
        load(file)


def _of_file(data: Path, base: str | None, kind: DataKind | None) -> Draft:
    table = look(data)
    reading = detect(table, kind)
    beside, strangers = _files_beside(data, reading)
    lines = _custom_lines(table, reading, beside)
    task = Custom.model_validate({line.key: line.value for line in lines})
    splits = {name: task.load(name) for name in task.splits}  # what is wrong with a row is said now, not in training
    if reading.kind == "classification":
        lines.append(_classes(task, splits["train"]))
    rows = splits["train"].rows
    foreign = _foreign_letters(table, reading)
    facts = Facts(_name_for(data), KINDS[reading.kind], _family(base, KINDS[reading.kind], foreign))
    lengths = measure(rows, facts.family.tokenizer)
    facts = replace(facts, lengths=lengths, rows={name: len(split.rows) for name, split in splits.items()})
    lines.append(settings.max_length(lengths, facts.family.positions))
    unused = [column.name for column in table.columns if not reading.role_of(column.name)]
    about = f"{reading.kind} from {data.name}: " + ", ".join(f"{len(s.rows):,} {name}" for name, s in splits.items())
    heading = [about + " rows.", *([f"Columns not used: {', '.join(unused)}."] if unused else [])]
    notes = [*reading.notes, *strangers, *_base_notes(facts, base, foreign)]
    return Draft(facts.name, _text(heading, facts, lines), _column_table(table, reading), notes)


def _form(base: str | None, kind: DataKind) -> Draft:
    """A recipe for files that are still to be named; it loads, and `--smoke` runs it."""
    role = {"classification": ("text", "label"), "regression": ("text", "label"), "completion": ("prompt", "target")}
    ending = "jsonl"
    lines = [
        Setting("name", CUSTOM),
        Setting("kind", kind, "classification, regression, completion or chat; lorakit init --kind writes each"),
        Setting("train", f"data/train.{ending}", "FILL IN: .jsonl, .json, .csv, .tsv, .parquet or hub:OWNER/NAME"),
        Setting("validation", f"data/validation.{ending}", "FILL IN; or held_out: 0.1 for every tenth training row"),
        Setting("columns", {name: name for name in role.get(kind, ("messages",))}, "FILL IN: role: your column's name"),
        settings.max_length(None, None),
    ]
    facts = Facts("recipe", KINDS[kind], _family(base, KINDS[kind], foreign=False))
    heading = [
        f"A form for {kind}: the lines marked FILL IN are yours; lorakit init --data FILE fills them in for you."
    ]
    notes = ["the file names under `task` are examples: fill them in, or run lorakit init --data FILE"]
    return Draft(facts.name, _text(heading, facts, lines), notes=[*notes, *_base_notes(facts, base, False)])


def _of_task(name: str, data: Path | None, base: str | None) -> Draft:
    """A recipe for a task that brings its own reader: its keys with their choices."""
    section = TASKS[name]
    lines = [Setting("name", name)]
    for key, field in section.model_fields.items():
        if key in Task.model_fields:
            continue
        choices = [choice for part in (field.annotation, *get_args(field.annotation)) for choice in get_args(part)]
        named = [choice for choice in choices if isinstance(choice, str)]
        about = (field.description or "").replace("\n", " ").split(". ")[0].removesuffix(".")
        value = named[0] if field.is_required() else field.default
        why = f"one of {', '.join(named)}" if field.is_required() else about
        if key == "path" and data is not None:
            value = str(data)
        lines.append(Setting(key, value, why))
    task = section.model_validate({line.key: line.value for line in lines})
    decoder = task.kind == "generation"
    facts = Facts(name, task.kind, _family(base, task.kind, foreign=name == "vsfc"))
    lines.append(settings.max_length(None, facts.family.positions))
    doc = (section.__doc__ or "").strip().split("\n")[0]
    return Draft(name, _text([doc], facts, lines), notes=_base_notes(facts, base, False) if decoder else [])


def _custom_lines(table: Table, reading: Reading, beside: dict[str, Path]) -> list[Setting]:
    lines = [
        Setting("name", CUSTOM, "your own rows"),
        Setting("kind", reading.kind, "classification, regression, completion or chat"),
        Setting("train", str(table.path), "paths are relative to where lorakit runs"),
    ]
    if "validation" in beside:
        lines.append(Setting("validation", str(beside["validation"]), "found beside it"))
    else:
        share = 0.2 if table.rows < 100 else 0.1 if table.rows < 20_000 else 0.02
        every = round(1 / share)
        lines.append(Setting("held_out", share, f"every {every}th row is validated on; or name a file: validation"))
    if "test" in beside:
        lines.append(Setting("test", str(beside["test"]), "for eval and predict --split test"))
    lines.append(Setting("columns", dict(reading.roles), "role: column"))
    if reading.template is not None:
        lines.append(Setting("template", reading.template, "the prompt; the blank line marks its end"))
    return lines


def _classes(task: Custom, train: Split) -> Setting:
    counts = Counter(row.label for row in train.rows if isinstance(row, TextRow))
    return settings.classes(task.labels, [counts[index] for index in range(len(task.labels))])


def _text(heading: Sequence[str], facts: Facts, task: Sequence[Setting]) -> str:
    """The whole file."""
    decoder, trained = facts.family.decoder, (facts.rows or {}).get("train")
    schedule = settings.train(decoder, trained)
    if facts.kind == "generation":
        schedule += settings.eval_limit((facts.rows or {}).get("validation"))
    sections: list[tuple[str, Sequence[Setting]]] = [
        ("model", [Setting("base", facts.family.base, _why_base(facts))]),
        ("method", settings.method(decoder, trained)),
        ("task", task),
        ("train", schedule),
    ]
    if facts.kind == "generation":
        sections.append(("generate", [settings.max_new_tokens(facts.lengths)]))
    return lay_out([*heading, "Written by lorakit init; lorakit schema lists every key."], sections)


def _why_base(facts: Facts) -> str:
    kinds = {
        family.ENCODER: "125M parameters, English; roberta-large is better and three times as large",
        family.MULTILINGUAL_ENCODER: "278M parameters, a hundred languages",
        family.DECODER: "small enough for a laptop; a larger one of its kind does better",
    }
    return kinds.get(facts.family.base, "a decoder" if facts.family.decoder else "an encoder")


def _family(base: str | None, kind: Kind, foreign: bool) -> family.Family:
    """The base that was named, or one that fits.

    Raises:
        RecipeError: An encoder cannot generate.
    """
    encoder = family.MULTILINGUAL_ENCODER if foreign else family.ENCODER
    fitting = family.DECODER if kind == "generation" else encoder
    found = family.family_of(base or fitting, wanted_decoder=kind == "generation")
    if kind == "generation" and not found.decoder:
        raise RecipeError(f"--base {base}: is an encoder, and these rows need text to be generated: name a decoder")
    return found


def _base_notes(facts: Facts, base: str | None, foreign: bool) -> list[str]:
    found = facts.family
    notes = []
    if found.guessed:
        what = "a decoder" if found.decoder else "an encoder"
        notes.append(f"{found.base} cannot be looked at from here: the settings are those of {what}")
    if foreign and base is None and found.decoder:
        notes.append(f"many letters are not English, which is all that {found.base} knows: name another with --base")
    return notes


def _foreign_letters(table: Table, reading: Reading) -> bool:
    """Whether over 5 % of the letters in the columns used are beyond ASCII."""
    used = [column for column in table.columns if reading.role_of(column.name)]
    letters = [letter for column in used for value in column.values for letter in value if letter.isalpha()]
    return 20 * sum(not letter.isascii() for letter in letters) > len(letters)


def _files_beside(data: Path, reading: Reading) -> tuple[dict[str, Path], list[str]]:
    """Split → the file that holds it by its name (dev.tsv beside train.tsv, x_test.csv beside x.csv).

    Also what is to be said of files with such names that lack the columns.
    """
    found: dict[str, Path] = {}
    strangers = []
    for split, names in PLACES.items():
        stems = [re.sub("train(ing)?", name, data.stem) for name in names]
        stems += [f"{data.stem}{sign}{name}" for name in names for sign in "._-"]
        files = [data.with_name(stem + data.suffix) for stem in dict.fromkeys(stems) if stem != data.stem]
        if there := [file for file in files if file.is_file()]:
            lacking = _lacking(there[0], reading, answered=split != "test")
            if lacking:
                strangers.append(f"{there[0]} is not taken for {split}: it has no column {', '.join(lacking)}")
            else:
                found[split] = there[0]
    return found, strangers


def _lacking(file: Path, reading: Reading, answered: bool) -> list[str]:
    """Columns that rows must have, and the first row has not."""
    there = next(read_records(file)).cells
    answers = () if answered else ("label", "target")
    wanted = [*reading.prompt, *(column for role, column in reading.roles.items() if role not in answers)]
    return [column for column in wanted if column not in there]


def _name_for(data: Path) -> str:
    stem = data.absolute().parent.name if data.stem.lower() in PLAIN_NAMES else data.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "recipe"


def _column_table(table: Table, reading: Reading) -> list[list[str]]:
    rows = [["column", "holds", "distinct", "absent", "example", "used as"]]
    for column in table.columns:
        example = column.example if len(column.example) <= 40 else column.example[:37] + "..."
        absent = table.rows - column.rows
        used = reading.role_of(column.name) or "-"
        rows.append([column.name, column.content, count(column), f"{absent:,}" if absent else "", example, used])
    return rows

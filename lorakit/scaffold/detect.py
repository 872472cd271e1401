"""What a data file's rows are: texts with a class, texts with a number, prompts with completions, or conversations.

Names decide before shapes: a column called `label` with few values is a class although another one has few as well.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lorakit.errors import DataError
from lorakit.scaffold.columns import MANY, Column, Table
from lorakit.tasks.custom import DataKind, Role

ANSWERS = (
    *("label", "labels", "goldlabel", "class", "category", "sentiment", "score", "similarity", "rating", "ratings"),
    *("stars", "grade", "target", "intent", "topic", "emotion", "polarity", "tag", "isduplicate", "quality", "type"),
    *("toxic", "toxicity", "spam", "value", "y", "answer", "output"),
)
"""Names of a class or a number, likeliest first; as the others here in small letters, without signs."""
TEXTS = (
    *("text", "sentence", "review", "reviewtext", "comment", "content", "body", "message", "tweet", "document"),
    *("question", "utterance", "feedback", "title"),
)
PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("texta", "textb"), ("text", "pair"), ("premise", "hypothesis")),
    *(("question1", "question2"), ("1string", "2string"), ("question", "sentence"), ("query", "passage")),
    *(("query", "document"), ("q1", "q2"), ("s1", "s2"), ("sent1", "sent2")),
)
COMPLETIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    *((("prompt",), "target"), (("prompt",), "completion"), (("prompt",), "response")),
    *((("instruction", "input"), "output"), (("instruction", "context"), "response")),
    *((("context", "question"), "answer"), (("dialogue",), "summary"), (("article",), "highlights")),
    *((("document",), "summary"), (("text",), "summary"), (("source",), "target"), (("input",), "target")),
    *((("question",), "query"), (("mr",), "ref")),
)
"""Columns of a prompt, of which all but one may be absent, and its completion."""
_ORDER: tuple[DataKind, ...] = ("chat", "completion", "classification", "regression")
NEEDS: dict[DataKind, str] = {
    "classification": "a text, and a label with 2 to 100 values that repeat",
    "regression": "a text, and a column of numbers",
    "completion": "a prompt and its completion, such as instruction and output, or two columns of text",
    "chat": "a column of lists of {role, content}",
}


@dataclass(frozen=True)
class Reading:
    """How to read a file's rows.

    Args:
        kind: Of the task `custom`.
        roles: Role → column; for completions the prompt is here only where one column is it as it stands.
        prompt: Columns of a prompt that is put together from a template.
        named: Whether the names of the columns say so, and not their shapes alone.
        notes: What a person should know, and cannot see from the rest.
    """

    kind: DataKind
    roles: dict[Role, str]
    prompt: tuple[str, ...] = ()
    named: bool = True
    notes: tuple[str, ...] = ()

    def role_of(self, column: str) -> str:
        """What a column is used as; empty text where it is not."""
        given = [role for role, name in self.roles.items() if name == column]
        return given[0] if given else "prompt" if column in self.prompt else ""

    @property
    def template(self) -> str | None:
        """The prompt's columns with a blank line after each, which tells the model where the prompt ends."""
        return "".join(f"{{{name}}}\n\n" for name in self.prompt) or None


def detect(table: Table, kind: DataKind | None = None) -> Reading:
    """Say what the rows are.

    Args:
        table: The file.
        kind: What a person says that they are.

    Raises:
        DataError: Nothing fits (or not that kind); lists the columns and what each kind needs.
    """
    if kind is not None:
        found = _FINDERS[kind](table)
        if found is None:
            raise DataError(f"{table.path}: kind {kind} needs {NEEDS[kind]}; the columns are {_listed(table)}")
        return found
    fitting = [found for each in _ORDER if (found := _FINDERS[each](table)) is not None]
    if not fitting:
        needs = [f"{each} needs {NEEDS[each]}" for each in _ORDER]
        nearly = _nearly(table)
        raise DataError(f"{table.path}: no kind of row fits its columns: {_listed(table)}", *nearly, *needs)
    # two columns of text are a completion only where nothing else is to be found
    chosen, *others = sorted(fitting, key=lambda it: 0 if it.named else 2 if it.kind == "completion" else 1)
    rivals = [other for other in others if (other.named or not chosen.named) and _worth_saying(other, table)]
    ambiguous = [f"{other.kind} would fit too ({_roles(other)}): --kind {other.kind}" for other in rivals]
    return Reading(chosen.kind, chosen.roles, chosen.prompt, chosen.named, (*chosen.notes, *ambiguous))


def _worth_saying(rival: Reading, table: Table) -> bool:
    """Whole numbers are also numbers, but few of them are seldom meant so."""
    labels = {column.name: column.distinct for column in table.columns}
    return rival.kind != "regression" or labels[rival.roles["label"]] >= 5


def plain(name: str) -> str:
    """A column's name in small letters, without signs: `Gold-Label` → `goldlabel`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _chat(table: Table) -> Reading | None:
    columns = [column for column in table.columns if column.content == "conversations"]
    return Reading("chat", {"messages": columns[0].name}) if columns else None


def _completion(table: Table) -> Reading | None:
    by_name = {plain(column.name): column for column in table.columns if column.as_text and column.rows}
    for prompts, target in COMPLETIONS:
        inputs = [by_name[name] for name in prompts if name in by_name]
        if inputs and target in by_name and not (target == "answer" and _few(by_name[target], table)):
            return _completion_of(table, inputs, by_name[target], named=True)
    texts = [column for column in table.columns if _is_text(column) and not _few(column, table)]
    return _completion_of(table, texts[:1], texts[1], named=False) if len(texts) == 2 else None


def _completion_of(table: Table, inputs: Sequence[Column], target: Column, named: bool) -> Reading:
    whole = [column for column in inputs if column.rows + column.blank == table.rows]
    notes = [f"`{c.name}` is absent from some rows, so it is left out of the prompt" for c in inputs if c not in whole]
    whole = whole or list(inputs)
    first = whole[0]
    roles: dict[Role, str] = {"target": target.name}
    separate = table.rows in (first.spaced_after, target.spaced_before)
    if len(whole) == 1 and (separate or re.search(r"[{}.\[\]!:]|^\s|\s$|^$", first.name)):
        return Reading("completion", {"prompt": first.name, **roles}, named=named, notes=tuple(notes))
    return Reading("completion", roles, tuple(column.name for column in whole), named, tuple(notes))


def _classification(table: Table) -> Reading | None:
    def fits(column: Column) -> bool:
        spelled = column.content == "numbers" and column.integral and column.as_text  # `1.0`, as spreadsheets write it
        return (column.content in ("text", "whole numbers") or spelled) and _few(column, table)

    def unnamed(column: Column) -> bool:
        return fits(column) and table.rows >= 5 * column.distinct and column.mean_words <= 4

    return _answered("classification", table, fits, unnamed)


def _regression(table: Table) -> Reading | None:
    def fits(column: Column) -> bool:
        return column.content in ("numbers", "whole numbers") and column.distinct > 2

    def unnamed(column: Column) -> bool:
        return column.content == "numbers" and fits(column)

    return _answered("regression", table, fits, unnamed)


_FINDERS: dict[DataKind, Callable[[Table], Reading | None]] = {
    "chat": _chat,
    "completion": _completion,
    "classification": _classification,
    "regression": _regression,
}


def _answered(
    kind: DataKind, table: Table, fits: Callable[[Column], bool], unnamed: Callable[[Column], bool]
) -> Reading | None:
    """A text, or a pair, with the likeliest column that can be its class or number."""
    by_name = {plain(column.name): column for column in table.columns}
    answers = [by_name[name] for name in ANSWERS if name in by_name and fits(by_name[name])]
    named = bool(answers)
    if not named:
        answers = [column for column in table.columns if not _is_id(column, table) and unnamed(column)]
    for answer in answers:
        if roles := _texts(table, answer):
            by_shape = () if named else (f"`{answer.name}` is the label by its values alone: see task.columns",)
            return Reading(kind, {**roles, "label": answer.name}, named=named, notes=by_shape)
    return None


def _texts(table: Table, answer: Column) -> dict[Role, str]:
    """The text, and its pair where the columns' names say that there is one; empty where no column is text."""
    columns = [c for c in table.columns if c is not answer and c.as_text and _is_text(c)]
    by_name = {plain(column.name): column.name for column in columns}
    for text, pair in PAIRS:
        if text in by_name and pair in by_name:
            return {"text": by_name[text], "pair": by_name[pair]}
    named = [by_name[name] for name in TEXTS if name in by_name]
    longest = sorted(columns, key=lambda column: -column.mean_words)
    return {"text": named[0] if named else longest[0].name} if columns else {}


def _few(column: Column, table: Table) -> bool:
    return 2 <= column.distinct <= 100 and column.distinct * 2 <= table.rows


def _is_text(column: Column) -> bool:
    return column.content == "text" and column.as_text


def _is_id(column: Column, table: Table) -> bool:
    counted = column.content == "whole numbers" and column.distinct == min(MANY, table.rows)
    return counted or plain(column.name) in ("", "id", "idx", "index", "unnamed0", "guid", "uuid")


def _nearly(table: Table) -> list[str]:
    """Columns that would be something, were they written in another way."""
    found = []
    for column in table.columns:
        if column.content == "lists" and '"from"' in column.example and '"value"' in column.example:
            found.append(f"`{column.name}` has turns of from and value: rename them to role and content")
        if column.content == "true/false":
            found.append(f"`{column.name}` is true or false: write a class as text, or as 0 and 1")
    return found


def _listed(table: Table) -> str:
    return ", ".join(
        f"`{column.name}` ({count(column)} {column.content})".replace("( ", "(") for column in table.columns
    )


def count(column: Column) -> str:
    """Distinct values as a person reads them; empty for columns of which they say nothing."""
    if column.content in ("conversations", "lists", "objects", "empty"):
        return ""
    return f"{column.distinct:,}{'+' if column.distinct == MANY else ''}"


def _roles(reading: Reading) -> str:
    prompt: Iterable[tuple[str, str]] = (("prompt", name) for name in reading.prompt)
    return ", ".join(f"{role} {name}" for role, name in (*prompt, *reading.roles.items()))

r"""Your own data: files or a hub data set, for classification, regression, completion or chat.

task:
  name: custom
  kind: completion
  train: data/train.jsonl
  validation: hub:OWNER/NAME:CONFIG@REVISION#SPLIT
  template: "Question: {question}\nAnswer: "
  columns: {target: answer}
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from lorakit.data.hub import load_split, parse_source
from lorakit.data.readers import READERS, Record, read_records, shown
from lorakit.data.rows import ChatRow, CompletionRow, Message, Row, TextRow
from lorakit.errors import DataError
from lorakit.tasks.base import Kind, Reading, Task
from lorakit.tasks.made_up import chat_rows, completion_rows, text_rows
from lorakit.tasks.template import columns_of, render

DataKind = Literal["classification", "regression", "completion", "chat"]
Role = Literal["text", "pair", "label", "prompt", "target", "messages"]
ROLES: dict[DataKind, tuple[Role, ...]] = {
    "classification": ("text", "pair", "label"),
    "regression": ("text", "pair", "label"),
    "completion": ("prompt", "target"),
    "chat": ("messages",),
}
KINDS: dict[DataKind, Kind] = {
    "classification": "classification",
    "regression": "regression",
    "completion": "generation",
    "chat": "generation",
}
METRICS: dict[DataKind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("pearson", "spearman"),
    "completion": ("exact_match", "bleu"),
    "chat": ("exact_match", "bleu"),
}
SPEAKERS = ("system", "user", "assistant")


class Custom(Task):
    """Rows from your own files, with columns that you name."""

    # `kind` and `labels` are the recipe's keys, but also what every task answers about itself: hence other names here
    model_config = ConfigDict(serialize_by_alias=True)
    places: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    name: Literal["custom"] = "custom"
    data_kind: DataKind = Field(alias="kind")
    """What a row is: a text with a class, a text with a number, a prompt with its completion, or a conversation."""
    train: str
    """A file (.jsonl, .json, .csv, .tsv, .parquet) or `hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`; the hub's split is
    the one of the same name unless `#SPLIT` says otherwise, slices such as `#train[90%:]` included."""
    validation: str | None = None
    """As `train`; training needs it, or `held_out`."""
    held_out: float | None = Field(None, gt=0, le=0.5)
    """In place of `validation`: a share of the training rows, evenly spaced, that is validated on and not trained on
    (0.1: every tenth)."""
    test: str | None = None
    """As `train`; its rows may lack labels and targets."""
    columns: dict[Role, str] = Field(default_factory=dict)
    """Role → column, where the column's name is not the role's: text, pair, label (classification, regression); prompt,
    target (completion); messages (chat). A pair is read only where it is named here."""
    template: str | None = None
    """The text or prompt, with columns in braces: `Question: {question}`; `{{` and `}}` are braces. Nothing is put
    between prompt and target: end the template, or begin the target, with the space that you want."""
    label_names: list[str] | None = Field(None, alias="labels", min_length=2)
    """The classes in their order; null: those of the training rows, sorted. A label is one of them, or its index."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _readable(cls, source: str | None) -> str | None:
        if source is not None and source.startswith("hub:"):
            parse_source(source, "train")
        elif source is not None and Path(source).suffix not in READERS:
            endings = ", ".join(READERS)
            raise ValueError(f"{source!r}: a file ends in one of {endings}; a data set of the hub starts with hub:")
        return source

    @field_validator("template")
    @classmethod
    def _well_formed(cls, template: str | None) -> str | None:
        if template is not None and not columns_of(template):
            raise ValueError("the template names no column, so all rows would be equal: put {column} into it")
        return template

    @field_validator("label_names")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) < len(names):
            raise ValueError("a label stands there twice")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> "Custom":
        roles = ROLES[self.data_kind]
        strangers = [role for role in self.columns if role not in roles]
        if strangers:
            raise ValueError(f"columns: kind {self.data_kind} has {', '.join(roles)}, not {', '.join(strangers)}")
        if self.template is not None and self.data_kind == "chat":
            raise ValueError("template: conversations are rendered by the tokenizer's chat template")
        if self.template is not None and roles[0] in self.columns:
            raise ValueError(f"template and columns.{roles[0]} both say what the {roles[0]} is; keep one")
        if self.label_names is not None and self.data_kind != "classification":
            raise ValueError(f"labels: kind {self.data_kind} has no classes")
        tables = [source for source in (self.train, self.validation, self.test) if source and _is_table(source)]
        if self.data_kind == "chat" and tables:
            raise ValueError(f"{tables[0]!r}: conversations need .jsonl, .json, .parquet or the hub")
        if self.held_out is not None and self.validation is not None:
            raise ValueError("validation and held_out both say what is validated on; keep one")
        return self

    def resolve(self) -> "Custom":
        """The classes written down, for the runs that are evaluated where the training rows are not."""
        return (
            self.model_copy(update={"label_names": list(self.labels)}) if self.data_kind == "classification" else self
        )

    @property
    def kind(self) -> Kind:
        """What the model must produce."""
        return KINDS[self.data_kind]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes: the recipe's, else those of the training rows (read once).

        Raises:
            DataError: The training rows cannot be read, or have fewer than two labels.
        """
        if self.data_kind == "classification":
            return tuple(self.label_names) if self.label_names else self._labels_found
        return ("score",) if self.data_kind == "regression" else ()

    @cached_property
    def _labels_found(self) -> tuple[str, ...]:
        records, _ = self._source_records(self.train, "train")  # the classes of held-out rows too
        found = {_label_text(record, self._column("label")) for record in records}
        if len(found) < 2:
            raise DataError(f"{self.train}: all rows have the label {shown(*found)}; there must be two or more")
        numeric = all(name.isdecimal() for name in found)
        return tuple(sorted(found, key=int)) if numeric else tuple(sorted(found))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy and macro F1; Pearson and Spearman; exact match and BLEU."""
        return METRICS[self.data_kind]

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that have a source."""
        there = {"train": self.train, "validation": self.validation or self.held_out, "test": self.test}
        return tuple(name for name, source in there.items() if source is not None)

    def read(self, split: str) -> Reading:
        """Begin to read one split.

        Raises:
            DataError: It has no source, or a row does not fit the kind; names the file and the line.
        """
        records, revision = self._records(split)
        return self.gather(split, (self._row(record, split) for record in records), revision)

    def sample(self, count: int, seed: int) -> list[Row]:
        """Made-up rows of the kind, with the recipe's classes."""
        if self.data_kind == "completion":
            return completion_rows(count, seed)
        if self.data_kind == "chat":
            return chat_rows(count, seed)
        labels = [0.0, 0.5, 1.0] if self.data_kind == "regression" else range(len(self.labels))
        return text_rows(count, seed, labels, pair="pair" in self.columns)

    def from_input(self, given: Mapping[str, object] | str, where: str) -> Row:
        """The recipe's columns, others ignored as in its files; or a plain line.

        A plain line is the text (a tab ends the first half of a pair), the prompt (the one column of a template), or
        what the user says.

        Raises:
            DataError: A column is missing or malformed, a conversation ends with the assistant, or the recipe needs
                several columns and the line is plain.
        """
        record = Record(where, self._line(given, where) if isinstance(given, str) else given)
        if self.data_kind == "chat":
            row = _chat_row(record, self._column("messages"), answered=False)
            if row.messages[-1]["role"] != "user":
                raise DataError(f"{where}: the last turn must be the user's, since the assistant's is predicted")
            return row
        text = self._text(record)
        if self.data_kind == "completion":
            return CompletionRow(text, None)
        return TextRow(text, record.text(self.columns["pair"]) if "pair" in self.columns else None)

    def _line(self, line: str, where: str) -> dict[str, object]:
        """The columns that a plain line stands for."""
        if self.data_kind == "chat":
            return {self._column("messages"): [{"role": "user", "content": line}]}
        names = [self._column(ROLES[self.data_kind][0])]
        if self.template is not None:
            names = columns_of(self.template)
        if "pair" in self.columns:
            names.append(self.columns["pair"])
        cells = line.split("\t") if len(names) == 2 and "pair" in self.columns else [line]
        if len(cells) != len(names):
            raise DataError(f"{where}: this recipe needs {', '.join(names)}: write JSON lines with these fields")
        return dict(zip(names, cells, strict=True))

    def _records(self, split: str) -> tuple[Iterator[Record], str | None]:
        """The rows of a split as the source has them, and the commit of a hub data set."""
        if self.held_out is not None and split in ("train", "validation"):
            records, revision = self._source_records(self.train, "train")
            return _every(records, self.held_out, held_out=split == "validation"), revision
        source = {"train": self.train, "validation": self.validation, "test": self.test}.get(split)
        if source is None:
            raise DataError(f"task.{split} is not given; this recipe has {', '.join(self.splits)}")
        return self._source_records(source, split)

    def _source_records(self, source: str, split: str) -> tuple[Iterator[Record], str | None]:
        if not source.startswith("hub:"):
            return read_records(Path(source)), None
        there = parse_source(source, split)
        read = load_split(there)
        return (Record(f"{there}, row {n}", cells) for n, cells in enumerate(read.rows, start=1)), read.revision

    def _column(self, role: Role) -> str:
        return self.columns.get(role, role)

    def _row(self, record: Record, split: str) -> Row:
        if self.data_kind == "chat":
            return _chat_row(record, self._column("messages"), answered=split != "test")
        text = self._text(record)
        answer = self._column("target" if self.data_kind == "completion" else "label")
        hidden = split == "test" and record.cells.get(answer) in (None, "")  # a table has no null
        if self.data_kind == "completion":
            return CompletionRow(text, None if hidden else record.text(answer))
        pair = record.text(self.columns["pair"]) if "pair" in self.columns else None
        return TextRow(text, pair, None if hidden else self._label(record, answer))

    def _text(self, record: Record) -> str:
        """The text or the prompt."""
        if self.template is not None:
            return render(self.template, record)
        return record.text(self._column(ROLES[self.data_kind][0]))

    def _label(self, record: Record, column: str) -> int | float:
        if self.data_kind == "regression":
            return record.number(column)
        text = _label_text(record, column)
        if text in self.labels:
            return self.labels.index(text)
        if text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        raise DataError(f"{record.where}: `{column}` must be one of {', '.join(self.labels)}, but is {shown(text)}")


def _every(records: Iterator[Record], share: float, held_out: bool) -> Iterator[Record]:
    """A share of the rows, evenly spaced (files are often sorted by label), or all the others."""
    for index, record in enumerate(records):
        if (int((index + 1) * share) > int(index * share)) == held_out:
            yield record


def _label_text(record: Record, column: str) -> str:
    cell = record[column]
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise DataError(f"{record.where}: `{column}` must be a class, as text or a whole number, but is {shown(cell)}")
    return str(cell)


def _chat_row(record: Record, column: str, answered: bool) -> ChatRow:
    """A conversation.

    Args:
        record: Has it in `column`: a list of {role, content}.
        column: Its column.
        answered: Whether it must end with the assistant, whose words are learned and scored.
    """
    turns = record[column]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{record.where}: `{column}` must be a list of {{role, content}}, but is {shown(turns)}")
    messages = [_message(turn, f"{record.where}: {column}[{index}]") for index, turn in enumerate(turns)]
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise DataError(f"{record.where}: `{column}`: a system turn can only be the first")
    if answered and roles[-1] != "assistant":
        raise DataError(f"{record.where}: `{column}` must end with an assistant turn: that is what is learned")
    return ChatRow(tuple(messages))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} must be {{role, content}}, but is {shown(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role not in SPEAKERS:
        raise DataError(f"{where}: role must be one of {', '.join(SPEAKERS)}, but is {shown(role)}")
    if not isinstance(content, str):
        raise DataError(f"{where}: content must be text, but is {shown(content)}")
    # a Parquet row has the keys of every row, null where they were absent
    extra = [str(key) for key, value in turn.items() if key not in ("role", "content") and value is not None]
    if extra:
        raise DataError(f"{where}: only role and content are read; remove {', '.join(extra)}")
    return Message(role=role, content=content)


def _is_table(source: str) -> bool:
    return not source.startswith("hub:") and Path(source).suffix in (".csv", ".tsv")

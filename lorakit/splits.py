"""Splits, read and tokenised: small ones in memory, the token ids of larger ones in a cache on the disk.

An entry of the cache is named by all that decides what is in it: the rows themselves, the tokenizer, the room that a
row has, and this code. So a changed file, recipe or base finds another entry, or none, and is tokenised anew.
"""

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

from lorakit.data.encode import Losses, encode, encode_chunks
from lorakit.data.items import Encoded, Item
from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Row, TextRow, has_target
from lorakit.data.stored import one_at_a_time, read_entry, remove_unused, write_entry
from lorakit.errors import DataError, LorakitError, ModelError, RecipeError
from lorakit.model import Prepared
from lorakit.progress import Progress
from lorakit.runtime import cache_directory, versions
from lorakit.tasks.base import Task

ENCODING = 1
"""Goes up with every change of what `encode` makes of a row."""
IN_MEMORY = 4 * 2**20
"""Bytes of text up to which a split is tokenised in memory every time, which takes a second or two."""


@dataclass(frozen=True)
class SplitData:
    """A split, read and tokenised.

    Args:
        name: train, validation, …
        rows: As the task read them.
        encoded: Their token ids.
        dropped: Why rows were left out, in reading or in encoding → how many.
        revision: The commit of a hub data set.
    """

    name: str
    rows: Sequence[Row]
    encoded: Encoded
    dropped: dict[str, int] = field(default_factory=dict)
    revision: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether the rows carry what is to be predicted (test splits may not)."""
        return bool(self.rows) and has_target(self.rows[0])

    def first(self, count: int | None) -> "SplitData":
        """The first `count` rows; all for None."""
        if count is None or count >= len(self.rows):
            return self
        items: list[Item] = []
        for item in self.encoded.items:  # in the order of the rows
            if item.row >= count:
                break
            items.append(item)
        return SplitData(self.name, self.rows[:count], replace(self.encoded, items=items), self.dropped, self.revision)


class Reread(Sequence[Row]):
    """Rows that are not kept, but read again from their source whenever they are asked for.

    Args:
        task: Reads them.
        split: Whose.
        count: How many there are.
        first: The first, which tells the kind of all.
    """

    def __init__(self, task: Task, split: str, count: int, first: Row) -> None:
        self._task, self._split, self._count, self._first = task, split, count, first

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return self._task.read(self._split).rows

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return list(islice(iter(self), *index.indices(self._count)))
        index = range(self._count)[index]
        return self._first if index == 0 else next(islice(iter(self), index, None))


@dataclass
class Survey:
    """What reading a split to its end tells.

    Args:
        task: Reads it.
        split: Its name.
        count: Rows.
        size: Bytes of their text, about.
        digest: SHA-256 of the rows: of all of them that token ids depend on.
        rows: The rows; of a large split whose rows are not kept, only the first.
        dropped: Why rows were left out → how many.
        revision: The commit of a hub data set.
    """

    task: Task
    split: str
    count: int
    size: int
    digest: str
    rows: list[Row]
    dropped: dict[str, int]
    revision: str | None


def survey(task: Task, split: str, keep_rows: bool) -> Survey:
    """Read a split once.

    Args:
        task: Reads it.
        split: Its name.
        keep_rows: Whether the rows are needed even if they are many.

    Raises:
        DataError: Its file is missing, empty or malformed.
    """
    reading, found, rows, count, size = task.read(split), hashlib.sha256(), list[Row](), 0, 0
    for row in reading.rows:
        said = row_bytes(row)
        found.update(said)
        count, size = count + 1, size + len(said)
        rows.append(row)
        if size > IN_MEMORY and not keep_rows:
            del rows[1:]
    return Survey(task, split, count, size, found.hexdigest(), rows, dict(reading.dropped), reading.revision)


def row_bytes(row: Row) -> bytes:
    """All of a row that its token ids depend on; different for different rows."""
    if isinstance(row, TextRow):
        parts: tuple[object, ...] = ("text", row.text, row.pair, row.label)
    elif isinstance(row, CompletionRow):
        parts = ("completion", row.prompt, row.target, row.separator)
    elif isinstance(row, ChoiceRow):
        parts = ("choice", row.prompt, row.choices, row.label)
    else:
        parts = ("chat", [(message["role"], message["content"]) for message in row.messages])
    return repr(parts).encode()


def tokenizer_digest(tokenizer: Any, directory: Path) -> str:
    """A hash of all that decides what a tokenizer makes of a text.

    Args:
        tokenizer: Loaded.
        directory: Of its base: the vocabulary of a tokenizer that is written in Python is in files there.
    """
    found = hashlib.sha256()
    kinds = ("cls", "sep", "bos", "eos", "pad", "unk")
    state = [type(tokenizer).__qualname__, *(getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds)]
    state += [tokenizer.chat_template, tokenizer.truncation_side, list(tokenizer.model_input_names)]
    state += [tokenizer.all_special_ids, sorted(tokenizer.get_added_vocab().items())]
    found.update(json.dumps(state, default=str).encode())
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # of the last call, and set anew by the next
        backend.no_padding()
        found.update(backend.to_str().encode())
    for name in sorted(set(tokenizer.vocab_files_names.values()) | {"tokenizer_config.json"}):
        if (directory / name).is_file():
            found.update(name.encode() + b"\0" + hashlib.sha256((directory / name).read_bytes()).digest())
    return found.hexdigest()


def entry_key(read: Survey, prepared: Prepared, limit: int) -> str:
    """The name of a split's entry in the cache: a hash of all that decides its token ids.

    Args:
        read: The rows.
        prepared: The tokenizer, and the places of a prefix.
        limit: Tokens of a row.
    """
    tokenizer, used = prepared.tokenizer, versions()
    dated = isinstance(read.rows[0], ChatRow) and "strftime_now" in str(tokenizer.chat_template)
    parts = {
        "encoding": ENCODING,
        "rows": read.digest,
        "tokenizer": tokenizer_digest(tokenizer, prepared.located.directory),
        "limit": limit,
        "slots": [prepared.slots.prefix, prepared.slots.infix],
        "versions": {name: used[name] for name in ("transformers", "tokenizers")},
        "day": str(datetime.datetime.now().date()) if dated else None,  # which the template puts into every row
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Positioned(Protocol):
    """What knows how long an input may be."""

    @property
    def max_tokens(self) -> int | None:
        """Longest input that the model has positions for."""
        ...


def token_limit(task: Task, prepared: Positioned) -> int:
    """Tokens per row: the task's max_length, or 512, within the model's positions.

    Raises:
        RecipeError: The task asks for more than the model has.
    """
    available = prepared.max_tokens
    if task.max_length is None:
        return min(512, available or 512)
    if available is not None and task.max_length > available:
        raise RecipeError(f"task.max_length: {task.max_length} exceeds the {available} positions of this base")
    return task.max_length


def read_split(task: Task, split: str, prepared: Prepared, progress: Progress, keep_rows: bool = True) -> SplitData:
    """Read and tokenise a split.

    Args:
        task: Reads it.
        split: Its name.
        prepared: The base, with its tokenizer.
        progress: Shown while it is tokenised.
        keep_rows: False where rows are hardly looked at once they are tokenised, as in training: those of a large split
            are then read again from their source when they are asked for.

    Raises:
        DataError: Its file is missing, empty or malformed, or no row is left.
        ModelError: See `check_ids`.
    """
    read = survey(task, split, keep_rows)
    limit = token_limit(task, prepared)
    rows: Sequence[Row] = read.rows if len(read.rows) == read.count else Reread(task, split, read.count, read.rows[0])
    encoded = _from_cache(read, prepared, limit, progress) if read.size > IN_MEMORY else None
    if encoded is None:
        with progress.bar(f"encode {split}", read.count) as bar:
            encoded = encode(rows, prepared.tokenizer, limit, bar.advance, prepared.slots)
    check_ids(encoded, prepared)
    return SplitData(split, rows, encoded, {**read.dropped, **encoded.dropped}, read.revision)


def _from_cache(read: Survey, prepared: Prepared, limit: int, progress: Progress) -> Encoded | None:
    """A large split's token ids, which are put into the cache if they are not there; None if it cannot be written."""
    entry = cache_directory() / "tokens" / entry_key(read, prepared, limit)
    try:
        with one_at_a_time(entry):
            found = read_entry(entry)
            if found is not None:
                progress.say(f"encode {read.split}: {read.count:,} rows, tokenised before: {entry}")
                return found
            _tokenise(read, prepared, limit, progress, entry)
            return read_entry(entry)
    except DataError:
        raise
    except LorakitError as error:
        if (found := read_entry(entry)) is None:  # else a process that had no lock has made it meanwhile
            progress.say(f"warning: the token ids of {read.split} stay in memory: {error}")
        return found


def _tokenise(read: Survey, prepared: Prepared, limit: int, progress: Progress, entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)  # one that is damaged
    losses, about = Losses(), dict[str, Any]()

    def chunks(advance: Callable[[int], None]) -> Iterator[list[Item]]:
        rows = _unchanged(read)
        yield from encode_chunks(rows, prepared.tokenizer, limit, prepared.slots, losses, advance)
        about.update(truncated=losses.truncated, dropped=losses.dropped)

    with progress.bar(f"encode {read.split}", read.count) as bar:
        write_entry(entry, chunks(bar.advance), about)
    remove_unused(entry.parent)


def _unchanged(read: Survey) -> Iterator[Row]:
    """The rows once more.

    Raises:
        DataError: They are others than those that were surveyed.
    """
    if len(read.rows) == read.count:
        yield from read.rows
        return
    found = hashlib.sha256()
    for row in read.task.read(read.split).rows:
        found.update(row_bytes(row))
        yield row
    if found.hexdigest() != read.digest:
        raise DataError(f"task: the rows of {read.split} have changed while they were read; start again")


def encode_for(
    prepared: Prepared, rows: Sequence[Row], limit: int, progress: Callable[[int], None] | None = None
) -> Encoded:
    """Tokenise rows for a model; see `encode`.

    Raises:
        ModelError: See `check_ids`.
    """
    return check_ids(encode(rows, prepared.tokenizer, limit, progress, prepared.slots), prepared)


def check_ids(encoded: Encoded, prepared: Prepared) -> Encoded:
    """The same, if the model has a row of its embedding for every token.

    Raises:
        ModelError: A token's id is beyond the embedding, which a GPU would only tell as "device-side assert".
    """
    known, tokenizer = int(prepared.model.get_input_embeddings().weight.shape[0]), prepared.tokenizer
    if (largest := max(encoded.summary.largest, tokenizer.pad_token_id)) >= known:
        raise ModelError(
            f"model.base: {prepared.located.name}: its tokenizer gives {tokenizer.convert_ids_to_tokens(largest)!r} "
            f"the id {largest}, and its embedding has {known:,} rows: tokenizer and weights do not belong together"
        )
    return encoded

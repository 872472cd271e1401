"""Splits: large ones are tokenised once, and what comes out of the cache is what tokenising gives."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_runs import files, history, run, same_result, small_recipe, write_rows

from lorakit import splits
from lorakit.arch import ARCHITECTURES
from lorakit.data.items import IGNORE, Encoded, Item
from lorakit.data.rows import ChatRow, ChoiceRow, CompletionRow, Message, Row, TextRow
from lorakit.data.slots import NO_SLOTS, Slots
from lorakit.data.stored import ITEMS
from lorakit.errors import DataError, ModelError
from lorakit.progress import Silent
from lorakit.splits import Reread, SplitData, Survey, entry_key, read_split, row_bytes
from lorakit.tasks import Custom
from lorakit.tiny import tiny_tokenizer
from lorakit.training.audit import check_rows

Tiny = Callable[[str], Path]


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every split counts as large, and the cache is the test's own."""
    monkeypatch.setattr(splits, "IN_MEMORY", 0)
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def base(directory: Path, model_type: str = "bert", slots: Slots = NO_SLOTS, vocabulary: int = 1000) -> Any:
    """As much of a prepared base as splits look at."""
    weight = SimpleNamespace(shape=(vocabulary, 8))
    return SimpleNamespace(
        tokenizer=tiny_tokenizer(ARCHITECTURES[model_type]),
        slots=slots,
        located=SimpleNamespace(name="tiny", directory=directory),
        model=SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight)),
        max_tokens=512,
    )


def task(folder: Path, kind: str = "classification", count: int = 40, **more: Any) -> Custom:
    folder.mkdir(exist_ok=True)
    train = write_rows(folder / "train.jsonl", kind, count, 1)
    return Custom.model_validate({"name": "custom", "kind": kind, "train": train, **more})


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


@pytest.mark.parametrize("kind", ["classification", "regression", "completion"])
def test_the_cache_gives_what_tokenising_gives(kind: str, tmp_path: Path, cache: Path, monkeypatch) -> None:
    of, own = base(tmp_path, "gpt2" if kind == "completion" else "bert"), task(tmp_path, kind, max_length=24)
    first, lines = read_split(own, "train", of, Silent(), keep_rows=False), Lines()
    assert len(entries(cache)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(splits, "encode_chunks", None)  # would raise
        again = read_split(own, "train", of, lines, keep_rows=False)
    assert lines.said == [f"encode train: 40 rows, tokenised before: {cache / entries(cache)[0]}"]
    monkeypatch.setattr(splits, "IN_MEMORY", 10**9)
    plain = read_split(own, "train", of, Silent())
    for data in (first, again):
        assert list(data.rows) == plain.rows and data.rows[3] == plain.rows[3] and data.rows[:2] == plain.rows[:2]
        assert data.encoded.digest() == plain.encoded.digest()
        assert data.encoded.truncated == plain.encoded.truncated > 0
        assert (data.dropped, data.encoded.dropped) == (plain.dropped, plain.encoded.dropped)
        assert data.encoded.lengths.tolist() == plain.encoded.lengths.tolist()
        for one, other in zip(data.encoded.items, plain.encoded.items, strict=True):
            assert one.row == other.row and one.input_ids.tolist() == other.input_ids.tolist()
            assert one.labels.tolist() == other.labels.tolist() and one.labels.dtype == other.labels.dtype
        part, known = data.first(3), plain.first(3)
        assert part.rows == known.rows and part.encoded.digest() == known.encoded.digest()


@pytest.mark.parametrize(("size", "stored"), [(10**9, False), (100, True)])
def test_only_large_splits_are_stored(size: int, stored: bool, tmp_path: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(splits, "IN_MEMORY", size)
    data = read_split(task(tmp_path), "train", base(tmp_path), Silent(), keep_rows=False)
    assert bool(entries(cache)) == stored and isinstance(data.rows, list) != stored
    assert isinstance(read_split(task(tmp_path), "train", base(tmp_path), Silent()).rows, list)


# --- what names an entry


ROWS: list[Row] = [TextRow("ab", None, 1), TextRow("c", None, 0)]


def key(rows: list[Row], of: Any, limit: int = 64) -> str:
    import hashlib

    digest = hashlib.sha256(b"".join(row_bytes(row) for row in rows)).hexdigest()
    return entry_key(Survey(Custom(kind="chat", train="a.jsonl"), "train", 2, 9, digest, rows, {}, None), of, limit)


def changed_tokenizer(of: Any, change: Callable[[Any], object]) -> Any:
    change(of.tokenizer)
    return of


def merged(tokenizer: Any) -> None:
    from tokenizers import models

    words = tokenizer.get_vocab()
    words["ab"] = len(words)
    tokenizer.backend_tokenizer.model = models.BPE(vocab=words, merges=[("a", "b")])


TOKENIZERS: dict[str, Callable[[Any], object]] = {
    "a merge": merged,
    "an added token": lambda it: it.add_tokens(["zz"]),
    "another end": lambda it: setattr(it, "eos_token", "a"),
    "another chat template": lambda it: setattr(it, "chat_template", "{{ messages }}"),
    "cut on the other side": lambda it: setattr(it, "truncation_side", "left"),
    "no token types": lambda it: setattr(it, "model_input_names", ["input_ids"]),
    "other spaces": lambda it: setattr(
        it.backend_tokenizer, "pre_tokenizer", __import__("tokenizers").pre_tokenizers.Whitespace()
    ),
}


@pytest.mark.parametrize("change", TOKENIZERS)
def test_the_tokenizer_is_part_of_the_key(change: str, tmp_path: Path) -> None:
    before = key(ROWS, base(tmp_path))
    assert key(ROWS, base(tmp_path)) == before
    assert key(ROWS, changed_tokenizer(base(tmp_path), TOKENIZERS[change])) != before


def test_what_a_tokenizer_did_before_is_not(tmp_path: Path) -> None:
    of = base(tmp_path)
    before = key(ROWS, of)
    of.tokenizer(["abc", "d"], truncation=True, max_length=4, padding=True)
    assert key(ROWS, of) == before


def test_files_of_the_vocabulary_are(tmp_path: Path) -> None:
    """A tokenizer written in Python keeps its vocabulary where only its files tell."""
    before = key(ROWS, base(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    between = key(ROWS, base(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert len({before, between, key(ROWS, base(tmp_path))}) == 3
    (tmp_path / "model.safetensors").write_text("weights")
    assert key(ROWS, base(tmp_path)) == key(ROWS, base(tmp_path))


def test_room_and_code_are_part_of_the_key(tmp_path: Path, monkeypatch) -> None:
    found = [
        key(ROWS, base(tmp_path)),
        key(ROWS, base(tmp_path), limit=65),
        key(ROWS, base(tmp_path, slots=Slots(prefix=2))),
        key(ROWS, base(tmp_path, slots=Slots(infix=2))),
    ]
    monkeypatch.setattr(splits, "ENCODING", splits.ENCODING + 1)
    found.append(key(ROWS, base(tmp_path)))
    for package in ("transformers", "tokenizers"):
        monkeypatch.setattr(
            splits, "versions", lambda package=package: {"transformers": 1, "tokenizers": 1, package: 2}
        )
        found.append(key(ROWS, base(tmp_path)))
    assert len(set(found)) == len(found)


def test_a_template_with_the_date_is_tokenised_anew_every_day(tmp_path: Path, monkeypatch) -> None:
    chat: list[Row] = [ChatRow((Message(role="user", content="a"), Message(role="assistant", content="b")))]
    plain, dated = base(tmp_path, "gpt2"), base(tmp_path, "gpt2")
    dated.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + dated.tokenizer.chat_template
    before = [key(chat, plain), key(chat, dated), key(ROWS, dated)]
    real = splits.datetime.datetime

    class Later(real):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real(2999, 1, 1)

    monkeypatch.setattr(splits.datetime, "datetime", Later)
    after = [key(chat, plain), key(chat, dated), key(ROWS, dated)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


DIFFERENT: list[list[Row]] = [
    ROWS,
    ROWS[::-1],
    ROWS[:1],
    [TextRow("ab", None, 0), TextRow("c", None, 0)],
    [TextRow("ab", None, 1.0), TextRow("c", None, 0)],
    [TextRow("ab", None, None), TextRow("c", None, 0)],
    [TextRow("ab", "", 1), TextRow("c", "", 0)],
    [TextRow("a", "b", 1), TextRow("c", "", 0)],
    [TextRow("\ud800", None, 1), TextRow("c", None, 0)],
    [CompletionRow("ab", "c")],
    [CompletionRow("a", "bc")],
    [CompletionRow("ab", None)],
    [CompletionRow("ab", "c", "eos")],
    [ChoiceRow("ab", ("c", "d"), 0)],
    [ChoiceRow("ab", ("c", "d"), 1)],
    [ChoiceRow("ab", ("cd",), 0)],
    [ChatRow((Message(role="user", content="ab"),))],
    [ChatRow((Message(role="assistant", content="ab"),))],
]


def test_different_rows_have_different_keys(tmp_path: Path) -> None:
    of = base(tmp_path)
    assert len({key(rows, of) for rows in DIFFERENT}) == len(DIFFERENT)
    gold: list[Row] = [CompletionRow("ab", "c", gold="what it is scored by is not tokenised")]
    assert key(gold, of) == key([CompletionRow("ab", "c")], of)


def test_the_same_rows_elsewhere_are_found(tmp_path: Path, cache: Path) -> None:
    """A run directory is moved, columns are renamed, a file becomes CSV: the tokens are the same."""
    of, one = base(tmp_path), task(tmp_path / "one")
    read_split(one, "train", of, Silent())
    rows = [json.loads(line) for line in Path(one.train).read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"was": row["text"], "is": row["label"]}) + "\n" for row in rows))
    renamed = Custom.model_validate(
        {"name": "custom", "kind": "classification", "train": str(other), "columns": {"text": "was", "label": "is"}}
    )
    read_split(renamed, "train", of, Silent())
    assert len(entries(cache)) == 1
    read_split(task(tmp_path / "one", count=41), "train", of, Silent())
    assert len(entries(cache)) == 2


# --- what goes wrong


def test_a_damaged_entry_is_made_anew(tmp_path: Path, cache: Path) -> None:
    of, own = base(tmp_path), task(tmp_path)
    before = read_split(own, "train", of, Silent()).encoded.digest()
    file = cache / entries(cache)[0] / ITEMS
    file.write_bytes(file.read_bytes()[:-5])
    lines = Lines()
    assert read_split(own, "train", of, lines).encoded.digest() == before and not lines.said
    read_split(own, "train", of, lines)
    assert len(lines.said) == 1


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "file"))
    lines = Lines()
    data = read_split(task(tmp_path), "train", base(tmp_path), lines, keep_rows=False)
    assert len(data.encoded) == 40 and len(lines.said) == 1
    assert lines.said[0].startswith("warning: the token ids of train stay in memory: ")


def test_what_is_wrong_with_rows_is_said_and_nothing_stored(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"no row is left: target longer than max_length \(4 tokens\)"):
        read_split(task(tmp_path, "completion", max_length=4), "train", base(tmp_path, "gpt2"), Silent())
    assert not entries(cache)
    for _ in range(2):  # found in the cache, too
        with pytest.raises(ModelError, match="its embedding has 20 rows"):
            read_split(task(tmp_path), "train", base(tmp_path, vocabulary=20), Silent())


def test_a_file_that_changes_meanwhile(tmp_path: Path, cache: Path, monkeypatch) -> None:
    own, real = task(tmp_path), splits.entry_key

    def meanwhile(*given: Any) -> str:
        write_rows(Path(own.train), "classification", 40, 7)
        return real(*given)

    monkeypatch.setattr(splits, "entry_key", meanwhile)
    with pytest.raises(DataError, match="the rows of train have changed while they were read"):
        read_split(own, "train", base(tmp_path), Silent(), keep_rows=False)
    assert not entries(cache)


PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_splits as own
from lorakit import splits
splits.IN_MEMORY = 0
folder, lines = Path(sys.argv[1]), own.Lines()
task = own.Custom(kind="classification", train=str(folder / "train.jsonl"), labels=["bad", "good"])
print("ready", flush=True)
sys.stdin.readline()
data = splits.read_split(task, "train", own.base(folder), lines, keep_rows=False)
print(data.encoded.digest(), len(lines.said))
"""


@pytest.mark.slow
def test_of_two_processes_one_tokenises(tmp_path: Path, cache: Path) -> None:
    task(tmp_path, count=3000)
    here = [str(Path(__file__).parent)]
    command = [sys.executable, "-c", PROCESS, str(tmp_path), "", *here]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n")[0].split() for process in both if process.stdin]
    assert answers[0][0] == answers[1][0] and sorted(answer[1] for answer in answers) == ["0", "1"]
    assert len(entries(cache)) == 1


MEMORY = """
import resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_splits as own
from lorakit import splits
of = own.base(Path(sys.argv[1]))
for name in ("warm", "small", "large"):
    task = own.Custom(kind="classification", train=f"{sys.argv[1]}/{name}.jsonl", labels=["bad", "good"])
    data = splits.read_split(task, "train", of, own.Silent(), keep_rows=False)
    data.encoded.digest(), data.encoded.lengths.sum(), len(data.rows)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="counts as Linux does")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Rows and token ids of the large file would be over 60 MB of Python objects."""
    words, rng = ["one", "two", "three", "four", "five"], random.Random(0)
    for name, count in (("warm", 2000), ("small", 4000), ("large", 40_000)):
        rows = (
            {"text": " ".join(rng.choices(words, k=20)), "label": rng.choice(["bad", "good"])} for _ in range(count)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = MEMORY.replace("for name", "splits.IN_MEMORY = 10_000\nfor name")
    command = [sys.executable, "-c", text, str(tmp_path), str(Path(__file__).parent)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    _, small, large = (int(line) for line in said)
    assert large - small < 20, said


# --- whole runs


@pytest.mark.parametrize("kind", ["classification", "completion"])
def test_a_run_is_the_same_from_the_cache(kind: str, tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch):
    recipe = small_recipe(tmp_path, tiny("gpt2" if kind == "completion" else "bert"), kind)
    for name, size in (("plain", 10**9), ("first", 0), ("again", 0)):
        monkeypatch.setattr(splits, "IN_MEMORY", size)
        run(recipe, tmp_path / name)
    assert len(entries(cache)) == 2
    for name in ("first", "again"):
        same_result(tmp_path / "plain", tmp_path / name)
        assert files(tmp_path / name) == files(tmp_path / "plain")
        assert (tmp_path / name / "predictions/validation.jsonl").read_bytes() == (
            tmp_path / "plain/predictions/validation.jsonl"
        ).read_bytes()
    monkeypatch.setattr(splits, "IN_MEMORY", 10**9)  # checkpoints of one go on in the other
    longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 3})})
    for name in ("plain", "again"):
        run(longer, tmp_path / name, resume=True)
        monkeypatch.setattr(splits, "IN_MEMORY", 0)
    assert history(tmp_path / "plain", "log") == history(tmp_path / "again", "log")


def test_audits_name_rows_that_are_read_again(tmp_path: Path) -> None:
    said: list[Message] = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    turns = [{"role": one["role"], "content": one["content"]} for one in said]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps({"messages": turns[:count]}) + "\n" for count in (2, 2, 1, 2)))
    own = Custom(kind="chat", train="none.jsonl", test=str(file))  # whose conversations may lack an answer
    rows = Reread(own, "test", 4, ChatRow(tuple(said)))
    silent = np.full(3, IGNORE)
    items = [
        Item(np.zeros(3, np.int32), silent if index in (1, 2) else np.arange(3), None, index) for index in range(4)
    ]
    with pytest.raises(DataError) as caught:
        check_rows(SplitData("train", rows, Encoded(items)), None)
    assert caught.value.problems == (
        "train: row 2: nothing to learn: no token is left that the model would have to predict",
        "train: row 3: nothing to learn: the assistant says nothing in it",
    )

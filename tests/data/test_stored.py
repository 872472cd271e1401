"""Items in a file: what is read back is what was written, and what is damaged is not read."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorakit.data.collate import collate
from lorakit.data.items import IGNORE, Encoded, Item
from lorakit.data.slots import PLACEHOLDER
from lorakit.data.stored import ABOUT, ITEMS, KEPT_DAYS, one_at_a_time, read_entry, remove_unused, write_entry
from lorakit.errors import DataError, LorakitError


def texts(types: bool = True) -> list[Item]:
    """Text rows of several lengths (none too) and kinds of label; some rows are missing."""
    labels: list[int | float] = [0, 2, 0.25, IGNORE, -3.5, 7.0, 1]
    found = []
    for index, label in enumerate(labels):
        ids = np.arange(index * 3, dtype=np.int32)
        found.append(Item(ids, np.asarray(label), ids % 2 if types else None, index * 2))
    return found


def completions() -> list[Item]:
    found = []
    for length in (5, 2, 9, 1, 30):
        ids = np.arange(length, dtype=np.int32) + 100
        labels = np.where(ids % 3 == 0, IGNORE, ids).astype(np.int64)
        found.append(
            Item(np.concatenate([np.array([PLACEHOLDER], np.int32), ids]), np.r_[IGNORE, labels], None, length)
        )
    return sorted(found, key=lambda item: item.row)


CASES = {"texts": texts(), "texts without types": texts(types=False), "completions": completions()}


def write(entry: Path, items: list[Item], at_once: int = 2, **about: Any) -> None:
    chunks = (items[start : start + at_once] for start in range(0, len(items), at_once))
    write_entry(entry, chunks, {"truncated": 0, "dropped": {}, **about})


def read(entry: Path) -> Encoded:
    found = read_entry(entry)
    assert found is not None
    return found


def same(one: Item, other: Item) -> bool:
    for a, b in ((one.input_ids, other.input_ids), (one.labels, other.labels)):
        if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a, b):
            return False
    a, b = one.token_type_ids, other.token_type_ids
    types = (a is None and b is None) or (a is not None and b is not None and a.dtype == b.dtype and (a == b).all())
    return one.row == other.row and bool(types)


ALONE = """
import sys
from pathlib import Path
import numpy as np
from lorakit.data.items import Item
from lorakit.data.stored import read_entry, write_entry
ids = np.arange(5, dtype=np.int32)
write_entry(Path(sys.argv[1]), iter([[Item(ids, np.asarray(1), ids % 2, 0)]]), {"truncated": 0, "dropped": {}})
assert read_entry(Path(sys.argv[1])).items[0].row == 0
print("pandas" in sys.modules)
"""


def test_pandas_is_not_imported(tmp_path: Path) -> None:
    """Arrow's conversions would: 37 MB, which the rows of a large split shall not cost."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "entry")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("case", CASES)
def test_read_back_is_what_was_written(case: str, tmp_path: Path) -> None:
    items = CASES[case]
    write(tmp_path / "entry", items, truncated=3, dropped={"too long": 2})
    found, plain = read(tmp_path / "entry"), Encoded(items)
    assert (len(found), found.truncated, found.dropped) == (len(items), 3, {"too long": 2})
    assert all(same(*pair) for pair in zip(found.items, items, strict=True))
    assert same(found.items[-1], items[-1]) and same(found.items[3], items[3])
    assert [item.row for item in found.items[1:4]] == [item.row for item in items[1:4]]
    with pytest.raises(IndexError):
        found.items[len(items)]
    for name in ("lengths", "targets", "last"):
        assert getattr(found.summary, name).tolist() == getattr(plain.summary, name).tolist()
    assert found.summary.largest == plain.summary.largest < PLACEHOLDER
    assert found.digest() == plain.digest()


@pytest.mark.parametrize("case", CASES)
def test_summary_is_what_its_words_say(case: str) -> None:
    items = CASES[case]
    known = hashlib.sha256()  # as checkpoints have it: a change here would refuse every run of before
    for item in items:
        known.update(len(item.input_ids).to_bytes(4, "little") + item.input_ids.tobytes() + item.labels.tobytes())
        known.update(b"" if item.token_type_ids is None else item.token_type_ids.tobytes())
    found = Encoded(items).summary
    assert found.digest == known.hexdigest()
    assert found.lengths.tolist() == [len(item.input_ids) for item in items]
    counted = [1 if item.labels.ndim == 0 else sum(label != IGNORE for label in item.labels[1:]) for item in items]
    assert found.targets.tolist() == counted
    assert found.last.tolist() == [int(item.labels if item.labels.ndim == 0 else item.labels[-1]) for item in items]


def test_nothing_has_a_summary() -> None:
    found = Encoded([])
    assert (len(found.lengths), len(found.targets), found.summary.largest) == (0, 0, 0)


def test_items_make_batches_without_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "entry", completions())
    found = read(tmp_path / "entry").items
    batch, plain = collate(found[:3], 0), collate(completions()[:3], 0)
    assert (batch.labels == plain.labels).all() and (batch.inputs["input_ids"] == plain.inputs["input_ids"]).all()
    first = found[0].input_ids
    first[0] = 9  # one's own copy: the file is not written to
    assert found[0].input_ids[0] != 9


def damage_byte(entry: Path) -> None:
    whole = bytearray((entry / ITEMS).read_bytes())
    whole[len(whole) // 2] ^= 1
    (entry / ITEMS).write_bytes(whole)


def damage_end(entry: Path) -> None:
    (entry / ITEMS).write_bytes((entry / ITEMS).read_bytes()[:-100])


def damage_about(entry: Path) -> None:
    about = json.loads((entry / ABOUT).read_text())
    (entry / ABOUT).write_text(json.dumps(about | {"truncated": about["truncated"] + 1}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": damage_byte,
    "a missing end": damage_end,
    "another count": damage_about,
    "no description": lambda entry: (entry / ABOUT).unlink(),
    "no JSON": lambda entry: (entry / ABOUT).write_text("{"),
    "no object": lambda entry: (entry / ABOUT).write_text("[]"),
    "no items": lambda entry: (entry / ITEMS).unlink(),
    "empty items": lambda entry: (entry / ITEMS).write_bytes(b""),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_is_as_if_it_were_not_there(damage: str, tmp_path: Path) -> None:
    write(tmp_path / "entry", completions())
    assert read_entry(tmp_path / "entry") is not None
    DAMAGES[damage](tmp_path / "entry")
    assert read_entry(tmp_path / "entry") is None


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[list[Item]]:
        yield completions()
        raise DataError("a bad row")

    with pytest.raises(DataError, match="a bad row"):
        write_entry(tmp_path / "cache" / "entry", chunks(), {})
    assert not list((tmp_path / "cache").iterdir())


def test_an_entry_that_is_there_stays(tmp_path: Path) -> None:
    write(tmp_path / "entry", completions())
    with pytest.raises(LorakitError, match="cannot write"):
        write(tmp_path / "entry", texts())
    assert len(read(tmp_path / "entry")) == len(completions())
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_what_nobody_uses_is_removed(tmp_path: Path) -> None:
    long_ago = time.time() - (KEPT_DAYS + 1) * 24 * 3600
    for name in ("old", "new", "used"):
        write(tmp_path / name, completions())
    for name in ("old", "used"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    still_open = read(tmp_path / "used")
    remove_unused(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used"}
    shutil.rmtree(tmp_path / "used")
    assert same(still_open.items[0], completions()[0])  # which has it open goes on
    remove_unused(tmp_path / "none")


def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    write(tmp_path / "entry", completions())
    monkeypatch.setattr(os, "utime", refuse)
    assert read_entry(tmp_path / "entry") is not None


def test_the_lock_is_removed(tmp_path: Path) -> None:
    with one_at_a_time(tmp_path / "cache" / "entry"):
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["entry.lock"]
    assert not list((tmp_path / "cache").iterdir())

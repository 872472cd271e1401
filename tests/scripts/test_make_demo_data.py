import csv
import hashlib
import importlib.util
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import ModuleType

import pytest

from lorakit.data.rows import distinct_prompts
from lorakit.tasks import E2E

SCRIPT = Path(__file__).parents[2] / "scripts/make_demo_data.py"
SHARED = Path(__file__).parents[2] / "../shared/data/e2e"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_data", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def run(out: Path, *arguments: str) -> dict[str, str]:
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(out), *arguments], check=True, timeout=60)
    return digest(out)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    assert first.keys() == {"trainset.csv", "devset.csv", "testset_w_refs.csv"}
    assert first == run(tmp_path / "b/c", "--seed", "0")
    assert not set(first.values()) & set(run(tmp_path / "d", "--seed", "1").values())


def test_sizes_can_be_chosen(tmp_path: Path) -> None:
    run(tmp_path, "--train", "5", "--dev", "2", "--test", "1")
    task = E2E(path=str(tmp_path))
    assert [len(distinct_prompts(task.load(split).rows)) for split in task.splits] == [5, 2, 1]
    assert len(task.load("train").rows) == 15


def test_the_task_reads_it(demo: ModuleType, tmp_path: Path) -> None:
    demo.write(tmp_path, demo.generate(0))
    task = E2E(path=str(tmp_path))
    grouped = {split: distinct_prompts(task.load(split).rows) for split in task.splits}
    assert [len(group) for group in grouped.values()] == [200, 40, 40]
    assert all(len(references) == 3 for _, references in grouped["train"])
    for split in ("validation", "test"):
        assert {len(references) for _, references in grouped[split]} == {3, 4}


def test_held_out_and_grouped(demo: ModuleType) -> None:
    files = demo.generate(3)
    meanings = {name: {meaning for meaning, _ in pairs} for name, pairs in files.items()}
    assert len(set.union(*meanings.values())) == sum(map(len, meanings.values())) == 280
    for name, pairs in files.items():
        assert len(list(groupby(pairs, key=lambda pair: pair[0]))) == len(meanings[name])
        assert len(set(pairs)) == len(pairs)


def test_every_reference_says_every_attribute(demo: ModuleType) -> None:
    yes = ("welcomes children", "place for families", "is family-friendly")
    no = ("not welcome children", "not meant for families", "not family-friendly")
    seen: Counter[str] = Counter()
    for pairs in demo.generate(1).values():
        for meaning, reference in pairs:
            values = dict(part.removesuffix("]").split("[") for part in meaning.split(", "))
            family = values.pop("familyFriendly", None)
            assert all(value.lower() in reference.lower() for value in values.values()), (meaning, reference)
            assert any(phrase in reference for phrase in yes) == (family == "yes"), (meaning, reference)
            assert any(phrase in reference for phrase in no) == (family == "no"), (meaning, reference)
            seen.update([*values, *([] if family is None else ["familyFriendly"])])
    assert seen.keys() == {"name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near"}


def test_sentences_are_well_formed(demo: ModuleType) -> None:
    references = [reference for pairs in demo.generate(2).values() for _, reference in pairs]
    for reference in references:
        assert reference[0].isupper() and reference.endswith(".") and "  " not in reference and " ." not in reference
        assert not any(f" a {vowel}" in reference for vowel in "AEIOUaeiou"), reference
        assert all(sentence[0].isupper() for sentence in reference.split(". "))
    masked = {reference.split(" is ")[0] for reference in references}
    assert len(set(references)) == len(references) and len(masked) > 100


def test_nothing_is_from_e2e(demo: ModuleType) -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    theirs: set[str] = set()
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        with (SHARED / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                theirs |= {part.removesuffix("]").split("[")[1] for part in row["mr"].split("], ")} | {row["ref"]}
    pairs = [pair for part in demo.generate(0).values() for pair in part]
    ours = {part.removesuffix("]").split("[")[1] for meaning, _ in pairs for part in meaning.split(", ")}
    assert ours & theirs == {"yes", "no"}
    assert not {reference for _, reference in pairs} & theirs

import json
from pathlib import Path

import pytest

from lorakit.errors import DataError, RecipeError
from lorakit.scoring.base import Files
from lorakit.scoring.samsum import score

ROWS = [
    {"id": "1", "dialogue": "A: x", "summary": "A red door.\r\nIt is open. "},
    {"id": "2", "dialogue": "A: x", "summary": "A blue gate"},
    {"id": "3", "dialogue": "", "summary": "Nobody talks"},
]


def write(folder: Path, predictions: str, rows: object = ROWS) -> Files:
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "said.txt").write_text(predictions)
    return Files(folder / "said.txt", folder / "test.json")


def test_every_row_has_a_prediction_of_its_own(tmp_path: Path) -> None:
    scores = score(write(tmp_path, "a red door it is open\na blue gate\nnobody talks\n"))
    assert scores.values == pytest.approx(dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 1.0))
    assert (scores.rows, scores.notes) == (3, ())


def test_an_empty_prediction_is_one(tmp_path: Path) -> None:
    scores = score(write(tmp_path, "a red door it is open\n\nnobody talks"))
    assert scores.values["rouge1"] == pytest.approx(2 / 3)
    assert score(write(tmp_path, "\n\n\n")).values["rouge1"] == 0.0


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"said\.txt: 2 predictions, but .*test\.json has 3 dialogues"):
        score(write(tmp_path, "a\nb\n"))
    with pytest.raises(DataError, match=r"test\.json, row 2: there is no column `summary`"):
        score(write(tmp_path, "a\nb\n", [{"summary": "x"}, {"dialogue": "y"}]))
    files = write(tmp_path, "a\n")
    files.references.write_text('[{"summary": "a"},\n nonsense]')
    with pytest.raises(DataError, match=r"test\.json: not JSON \(.*line 2 column 2"):
        score(files)
    with pytest.raises(RecipeError, match="^--subset: samsum has no use for it"):
        score(Files(files.predictions, files.references, subset="x"))

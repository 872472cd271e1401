"""The report of a run, from the files of its directory."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_runs import files, history, report, run, small_recipe

from lorakit.errors import CheckpointError
from lorakit.report import write_pages, write_report
from lorakit.report.page import _duration

PAGES = ("report.md", "report.html")


@pytest.mark.parametrize("kind", ["classification", "regression", "completion"])
def test_pages_of_a_run(tmp_path: Path, tiny: Any, kind: str) -> None:
    recipe = small_recipe(tmp_path, tiny("gpt2" if kind == "completion" else "bert"), kind)
    run(recipe, tmp_path / "run")
    found = report(tmp_path / "run")
    plots = {name for name in files(tmp_path / "run") if name.startswith("plots/")}
    special = {"classification": {"confusion_validation"}, "regression": {"scatter_validation"}, "completion": set()}
    curves = {"loss", "metric", "gradient_norm", "learning_rate"}
    assert plots == {f"plots/{name}.png" for name in special[kind] | curves}
    text, page = ((tmp_path / "run" / name).read_text() for name in PAGES)
    assert text.startswith("# small\n\nlora (rank 2) on ")
    assert all(f"({name})" in text for name in plots)
    assert page.count("<svg ") == len(plots)
    assert f"<b>{100 * next(v for k, v in found['metrics']['validation'].items() if k != 'loss'):.2f}</b>" in page
    assert (tmp_path / "run/recipe.yaml").read_text() in text
    word = {"classification": "precision", "regression": "mean absolute error", "completion": "reference"}[kind]
    assert word in text
    assert word in page


def test_the_pages_are_made_from_the_directory_alone(tmp_path: Path, tiny: Any) -> None:
    run(small_recipe(tmp_path / "made", tiny("bert")), tmp_path / "run")
    shutil.rmtree(tmp_path / "made")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    before = {name: (moved / name).read_bytes() for name in files(moved)}
    for name in ("report.md", "report.html"):
        (moved / name).unlink()
    shutil.rmtree(moved / "plots")
    write_pages(moved)
    assert {name: (moved / name).read_bytes() for name in files(moved)} == before


def test_a_run_without_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no report.json: not a run directory, or the run has not finished"):
        write_pages(tmp_path)


def test_two_validation_splits_the_paper_and_an_evil_prediction(tmp_path: Path, tiny: Any) -> None:
    run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    found = report(tmp_path / "run")
    found["metrics"]["validation_mismatched"] = {"loss": None, "accuracy": 0.125}
    found["paper"] = {"source": "Table 2", "metric": "accuracy", "value": 87.5, "std": 0.3}
    row = {"text": "<script>alert(1)</script>", "prediction": "good", "label": "bad"}
    (tmp_path / "run/predictions/validation_mismatched.jsonl").write_text(json.dumps(row) + "\n")
    write_report(tmp_path / "run", found)
    text, page = ((tmp_path / "run" / name).read_text() for name in PAGES)
    for written in (text, page):
        assert "12.50" in written
        assert "87.5 ± 0.3" in written
        assert "undefined" in written
        assert "<script" not in written
        assert "&lt;script&gt;alert(1)" in written
    assert (tmp_path / "run/plots/confusion_validation_mismatched.png").is_file()


def test_report_json_comes_first(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lorakit.report.write.page", fail)
    with pytest.raises(ZeroDivisionError):
        run(small_recipe(tmp_path, tiny("bert")), tmp_path / "run")
    assert {"adapter.safetensors", "report.json", "predictions/validation.jsonl"} <= files(tmp_path / "run")
    monkeypatch.undo()
    write_pages(tmp_path / "run")
    assert {"report.md", "report.html"} <= files(tmp_path / "run")
    assert history(tmp_path / "run", "final")


@pytest.mark.parametrize(("seconds", "text"), [(59.94, "59.9 s"), (61, "1 min 1 s"), (3725.4, "1 h 2 min")])
def test_duration(seconds: float, text: str) -> None:
    assert _duration(seconds) == text

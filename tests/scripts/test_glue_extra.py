import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.data.rows import TextRow
from lorakit.tasks import Glue

SCRIPT = Path(__file__).parents[2] / "scripts/glue_extra.py"
LABELS = {"mnli": "neutral", "qnli": "not_entailment", "qqp": "1"}


def run(source: Path, out: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), str(source), str(out)], check=True, capture_output=True)


def test_what_is_written_is_read_as_glue(tmp_path: Path) -> None:
    for subset, label in LABELS.items():
        (tmp_path / "given" / subset.upper()).mkdir(parents=True)
        for part in ("train", "dev"):
            rows = {str(n): {"text_a": f'{part} "{n}', "text_b": "b", "label": label} for n in range(2)}
            (tmp_path / "given" / subset.upper() / f"{part}.json").write_text(json.dumps(rows))
    run(tmp_path / "given", tmp_path / "glue")
    for subset in LABELS:
        task = Glue.model_validate({"subset": subset, "path": str(tmp_path / "glue")})
        for split in (name for name in task.splits if name.startswith(("train", "validation"))):
            part = "train" if split == "train" else "dev"
            assert task.load(split).rows == [TextRow(f'{part} "{n}', "b", 1) for n in range(2)]


@pytest.mark.slow
def test_the_real_files(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "../shared/data/glue_extra_10k"
    if not source.is_dir():
        pytest.skip("../shared/data/glue_extra_10k is absent")
    run(source, tmp_path)
    for subset in LABELS:
        task = Glue.model_validate({"subset": subset, "path": str(tmp_path)})
        for split, count in (("train", 8999), ("validation", 1000)):
            read = task.load(split)
            assert (len(read.rows), read.dropped) == (count, {})

"""Several runs on one base in 4 bits: compared, switched in memory, added up."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import batches
from small_runs import logits, moved_run, recipe_file
from torch import Tensor

from lorakit.adapters import Switch
from lorakit.checkpoint import open_run
from lorakit.cli import main
from lorakit.combine import combine
from lorakit.errors import CheckpointError
from lorakit.merge import merge
from lorakit.tiny import make_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")
IN_4_BITS = {"model": {"quantize": "nf4"}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base("llama", tmp_path_factory.mktemp("together") / "base", initializer_range=0.1)


def moved(folder: Path, base: Path, seed: int, sections: dict[str, Any], **method: Any) -> Path:
    return moved_run(folder / str(seed), base, "completion", seed, **sections, method=method)


def fresh(run: Path) -> Tensor:
    """As evaluation computes it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return logits(open_run(run).prepared.model)


def test_methods_are_compared(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path, base, "completion", **IN_4_BITS, train={"epochs": 1})
    with pytest.raises(SystemExit) as done:
        main(["compare", str(file), "--methods", "lora,dora", "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert not done.value.code, said.err
    assert "latency: not measured, since what is timed are whole bases, and this one is in 4 bits" in said.out
    facts = json.loads((tmp_path / "out/compare.json").read_text())
    assert [(run["method"], run["status"]) for run in facts["runs"]] == [("lora", "complete"), ("dora", "complete")]
    assert all(method["latency"] is None and method["parameters"] for method in facts["methods"])
    with pytest.raises(SystemExit) as done:
        main(["compare", str(file), "--methods", "lora,full", "--out", str(tmp_path / "no")])
    assert done.value.code == 2
    assert "error: full: method: name: full trains the base's own tensors, which quantize" in capsys.readouterr().err


def test_adapters_take_turns(tmp_path: Path, base: Path) -> None:
    own: list[dict[str, Any]] = [{}, {"targets": ["q", "v"], "rank": 3}, {"dora": True}, {"also_train": ["norm"]}]
    runs = [moved(tmp_path, base, seed, IN_4_BITS, **method) for seed, method in enumerate(own)]
    switch = Switch(*runs)
    bare = logits(switch.use(None))
    for index in (0, 1, 2, 3, 1, 0):
        assert torch.equal(logits(switch.use(runs[index])), fresh(runs[index]))
    assert torch.equal(logits(switch.use(None)), bare)
    assert not torch.equal(bare, fresh(runs[0]))
    prompt = torch.randint(10, 200, (1, 6), generator=torch.Generator().manual_seed(0))
    assert switch.use(runs[0]).generate(prompt, max_new_tokens=3, do_sample=False).shape == (1, 9)


def test_adapters_are_added_up(tmp_path: Path, base: Path) -> None:
    runs = [moved(tmp_path, base, 1, IN_4_BITS), moved(tmp_path, base, 2, IN_4_BITS, targets=["q", "v"], rank=3)]
    assert combine(runs, tmp_path / "sum").max_difference < 1e-6
    opened = open_run(tmp_path / "sum", skeleton=True)
    assert opened.prepared.quantised is not None
    report = merge(opened, tmp_path / "merged", batches=batches())
    assert report.onto == "trained"
    assert report.logits is not None
    assert report.logits.lost_share < 1e-3


def test_a_whole_base_is_another_one(tmp_path: Path, base: Path) -> None:
    runs = [moved(tmp_path, base, 1, IN_4_BITS), moved(tmp_path, base, 2, {})]
    for pair in (runs, runs[::-1]):
        with pytest.raises(CheckpointError, match=r"was trained on the base (whole|in 4 bits), and .*other weights"):
            combine(pair, tmp_path / "sum")
        with pytest.raises(CheckpointError, match=r"was trained on the base (whole|in 4 bits), and .*other weights"):
            Switch(*pair)

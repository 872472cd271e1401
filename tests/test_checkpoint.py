import hashlib
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import batches, tiny_base
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.checkpoint import (
    ADAPTER,
    CHECKPOINTS,
    FORMAT,
    RECIPE,
    Provenance,
    StoredTensors,
    adapter_file,
    check_digest,
    head_of,
    open_run,
    read_adapter,
    save_adapter,
)
from lorakit.errors import CheckpointError, LorakitError
from lorakit.merge import merge
from lorakit.model import prepare
from lorakit.recipe import load
from lorakit.seal import tensors_digest
from lorakit.surgery import trainable_parameters, trainable_state

PROVENANCE = Provenance(FORMAT, [{"name": "lora", "rank": 4}], "owner/base", "0123abc", "f" * 64)
RECIPE_TEXT = """
name: test
model: {{base: {base}}}
method: {{name: lora, rank: {rank}, targets: [q, v]}}
task: {{name: custom, kind: classification, labels: [no, maybe, yes], train: train.jsonl, validation: dev.jsonl}}
train: {{epochs: 1, lr: 0.001, batch_size: 4}}
"""


def some_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.{part}": torch.randn(3, i + 1, generator=generator) for i in range(9) for part in "BA"}


def make_run(directory: Path, base: Path, rank: int = 4) -> Path:
    """A run directory with a published adapter and one checkpoint, without the training."""
    directory.mkdir()
    (directory / RECIPE).write_text(RECIPE_TEXT.format(base=base, rank=rank))
    recipe = load(directory / RECIPE)
    prepared = prepare(recipe.model, recipe.method, head_of(recipe), recipe.train.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(prepared.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    state = trainable_state(prepared.model)
    save_adapter(directory / ADAPTER, state, Provenance.of(prepared))
    step = directory / CHECKPOINTS / "step-20"
    save_adapter(step / ADAPTER, {name: value * 2 for name, value in state.items()}, Provenance.of(prepared))
    return directory


# --- the file ---


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    file, state = tmp_path / "deep" / ADAPTER, some_state()
    save_adapter(file, state, PROVENANCE)
    read, provenance = read_adapter(file)
    assert provenance == PROVENANCE
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())
    first = file.read_bytes()
    save_adapter(file, read, provenance)
    assert file.read_bytes() == first
    assert [path.name for path in file.parent.iterdir()] == [ADAPTER]


def test_there_is_one_metadata_key_and_it_is_canonical(tmp_path: Path) -> None:
    save_adapter(tmp_path / ADAPTER, some_state(), PROVENANCE)
    with safe_open(tmp_path / ADAPTER, "pt") as opened:
        metadata = opened.metadata()
    assert list(metadata) == ["lorakit"]
    fields = json.loads(metadata["lorakit"])
    assert metadata["lorakit"] == json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert [len(fields.pop(name)) for name in ("digest", "tensors")] == [64, 64]
    assert fields == {
        "format": 2,
        "methods": [{"name": "lora", "rank": 4}],
        "base": "owner/base",
        "revision": "0123abc",
        "fingerprint": "f" * 64,
    }


def test_equal_adapters_have_equal_bytes_in_any_process(tmp_path: Path) -> None:
    """Also where the tensors come in another order."""
    code = """
import sys
from pathlib import Path
from test_checkpoint import PROVENANCE, save_adapter, some_state
state = dict(reversed(some_state().items())) if sys.argv[2] == "reversed" else some_state()
save_adapter(Path(sys.argv[1]), state, PROVENANCE)
"""
    for number in range(3):
        save_adapter(tmp_path / str(number), some_state(), PROVENANCE)
    for seed, order in (("1", "same"), ("2", "reversed")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / f"seed{seed}" / "x"), order], env=environment, check=True
        )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1


def test_every_kind_of_damage_is_a_checkpoint_error(tmp_path: Path) -> None:
    file = tmp_path / ADAPTER
    save_adapter(file, some_state(), PROVENANCE)
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="adapter.safetensors: "):
            read_adapter(file)
    file.write_bytes(whole + b"more")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_adapter(file)


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    """Of the header and of the tensors."""
    file = tmp_path / ADAPTER
    save_adapter(file, some_state(), PROVENANCE)
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            read_adapter(file)


def test_a_file_of_before_the_digests_is_read(tmp_path: Path) -> None:
    fields = {**PROVENANCE.__dict__, "format": 1}
    state, provenance = read_adapter(with_metadata(tmp_path / ADAPTER, lorakit=json.dumps(fields)))
    assert provenance.methods == PROVENANCE.methods
    assert state.keys() == some_state().keys()


def with_metadata(file: Path, **metadata: str) -> Path:
    save_file(some_state(), file, metadata=metadata)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a lorakit adapter"),
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({**PROVENANCE.__dict__, "fingerprint": 3}), "damaged"),
        (json.dumps({**PROVENANCE.__dict__, "format": 99}), r"newer lorakit \(format 99\); upgrade"),
    ],
)
def test_foreign_metadata_is_a_checkpoint_error(tmp_path: Path, text: str | None, message: str) -> None:
    file = with_metadata(tmp_path / ADAPTER, **({"format": "pt"} if text is None else {"lorakit": text}))
    with pytest.raises(CheckpointError, match=message):
        read_adapter(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: float) -> None:
    state = some_state()
    state["layer.4.A"][1, 1] = value
    save_adapter(tmp_path / ADAPTER, state, PROVENANCE)
    with pytest.raises(CheckpointError, match=r"layer\.4\.A holds NaN or infinity"):
        read_adapter(tmp_path / ADAPTER)


# --- the run directory ---


def test_a_run_opens_as_it_was_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base(tmp_path, "roberta"))
    opened = open_run(run)
    saved, provenance = read_adapter(run / ADAPTER)
    assert all(torch.equal(value, saved[name]) for name, value in trainable_state(opened.prepared.model).items())
    assert opened.state.keys() == saved.keys() == trainable_state(opened.prepared.model).keys()
    assert (provenance.base, provenance.revision) == ("base-roberta", None)
    again = tmp_path / "again"
    save_adapter(again, trainable_state(opened.prepared.model), Provenance.of(opened.prepared))
    assert again.read_bytes() == (run / ADAPTER).read_bytes()
    assert not opened.prepared.model.training


def test_checkpoints_and_the_bare_base_open_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base(tmp_path, "bert"))
    published, step = open_run(run).state, open_run(run, "step-20").state
    assert all(torch.equal(step[name], value * 2) for name, value in published.items())
    bare = open_run(run, base_only=True)
    assert bare.state == {}
    assert not any(".update." in name for name, _ in bare.prepared.model.named_parameters())


def test_a_skeleton_holds_the_adapter_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base(tmp_path, "gpt2"))
    skeleton, loaded = open_run(run, skeleton=True), open_run(run)
    real = {name for name, parameter in skeleton.prepared.model.named_parameters() if not parameter.is_meta}
    assert real == set(trainable_parameters(loaded.prepared.model)) == set(skeleton.state)
    assert Provenance.of(skeleton.prepared) == Provenance.of(loaded.prepared)
    assert skeleton.prepared.file_names == loaded.prepared.file_names


def test_a_run_merges(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base(tmp_path, "bert"))
    report = merge(open_run(run, skeleton=True), tmp_path / "merged", batches=batches())
    assert (report.merged, report.added) == (4, 2)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    run = make_run(tmp_path / "run", base)
    (tmp_path / "other").mkdir()
    other = tiny_base(tmp_path / "other", "bert", seed=1)
    (base / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    for skeleton in (False, True):
        with pytest.raises(CheckpointError, match="was trained on another base: base-bert; .* has other weights here"):
            open_run(run, skeleton=skeleton)


def test_a_base_that_differs_elsewhere_still_fits(tmp_path: Path) -> None:
    """Only the tensors that the adapter changes count: a base saved again with another head is the same base."""
    base = tiny_base(tmp_path, "roberta")
    run = make_run(tmp_path / "run", base)
    tensors = load_file(base / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "lm_head" not in name}, base / "model.safetensors")
    open_run(run)


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_base(tmp_path, "bert"))
    state, provenance = read_adapter(run / ADAPTER)
    layer = "bert.encoder.layer.0.attention.self"
    state["stray"] = torch.zeros(1)
    del state["classifier.bias"], state[f"{layer}.query.update.A"]
    state[f"{layer}.value.update.B"] = torch.zeros(64, 5)
    save_adapter(run / ADAPTER, state, provenance)
    with pytest.raises(CheckpointError) as caught:
        open_run(run)
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        f"{layer}.query.update.A is missing",
        f"{layer}.value.update.B has shape (64, 5), the recipe makes (64, 4)",
        "classifier.bias is missing",
        "stray is not part of this model",
    ]
    assert all(str(run / ADAPTER) in problem for problem in caught.value.problems)


def test_a_changed_recipe_does_not_fit_its_adapter(tmp_path: Path) -> None:
    base = tiny_base(tmp_path, "bert")
    run = make_run(tmp_path / "run", base)
    (run / RECIPE).write_text(RECIPE_TEXT.format(base=base, rank=2))
    with pytest.raises(
        CheckpointError, match=r'was trained by {"name": "lora", "rank": 4.*has {"name": "lora", "rank": 2'
    ):
        open_run(run)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: not a run directory: it has no recipe\.yaml"):
        adapter_file(tmp_path / "nowhere")
    for options in ({}, {"base_only": True}, {"skeleton": True}):
        with pytest.raises(CheckpointError, match="not a run directory"):
            open_run(tmp_path, **options)  # type: ignore[arg-type]
    (tmp_path / RECIPE).write_text("name: x\n")
    with pytest.raises(CheckpointError, match="this run has not finished.*train --resume"):
        adapter_file(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint step-7; there are: none"):
        adapter_file(tmp_path, "step-7")
    for step in ("step-20", "step-40"):
        save_adapter(tmp_path / CHECKPOINTS / step / ADAPTER, some_state(), PROVENANCE)
    with pytest.raises(CheckpointError, match="no checkpoint step-7; there are: step-20, step-40"):
        adapter_file(tmp_path, "step-7")
    assert adapter_file(tmp_path, "step-40") == tmp_path / CHECKPOINTS / "step-40" / ADAPTER


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ADAPTER
    save_adapter(file, some_state(), PROVENANCE)
    before = file.read_bytes()

    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(LorakitError, match=r"adapter\.safetensors: cannot write: No space left on device"):
        save_adapter(file, some_state(), replace(PROVENANCE, base="other"))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [ADAPTER]


def test_stored_tensors_are_those_of_the_file(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"number": torch.tensor(2.5), "none": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "some.safetensors")
    stored = StoredTensors(tmp_path / "some.safetensors")
    assert stored.keys() == tensors.keys()
    assert len(stored) == len(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)


def test_stored_tensors_of_a_file_that_is_cut_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_file({"a": torch.ones(100), "b": torch.ones(100)}, file)
    stored = StoredTensors(file)
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 8)
    assert stored["a"].sum() == 100
    with pytest.raises(CheckpointError, match="has become shorter"):
        stored["b"]


def test_a_checkpoint_is_verified_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full fine-tune's moments are twice the model: reading them all back to look at them could end the run."""
    file = tmp_path / "some.safetensors"
    tensors = {name: torch.full((1000,), float(index)) for index, name in enumerate("abc")}
    save_file(tensors, file)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = StoredTensors.__getitem__

    def counted(self: StoredTensors, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(one() is not None for one in alive))
        return tensor

    monkeypatch.setattr(StoredTensors, "__getitem__", counted)
    check_digest(file, StoredTensors(file), tensors_digest(tensors))
    assert len(alive) == 3
    assert most <= 2  # the next is read before the name of the last one is given away
    tensors["b"][7] = 0
    with pytest.raises(CheckpointError, match="not those that were written"):
        check_digest(file, StoredTensors(file), tensors_digest(tensors))

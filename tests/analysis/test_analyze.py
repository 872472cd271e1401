"""`lorakit analyze` from files to files."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import moved_run
from torch import Tensor

from lorakit.analysis import analyze, check_place, write
from lorakit.analysis.sites import matrices
from lorakit.checkpoint import open_run, read_adapter, save_adapter
from lorakit.cli import main
from lorakit.errors import CheckpointError, RecipeError
from lorakit.layers.low_rank import LoRALayer
from lorakit.methods.lora import LoRA
from lorakit.model import Base, Head, prepare
from lorakit.nf4 import weight_of
from lorakit.progress import Silent

Tiny = Callable[[str], Path]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(["analyze", *map(str, words)])
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def run_of(folder: Path, base: Path, seed: int = 1, **method: Any) -> Path:
    """A run whose directory has the folder's name."""
    made = moved_run(folder / "made", base, "completion", seed, method=method, train={"seed": seed})
    made.rename(folder / folder.name)
    return folder / folder.name


def test_a_fused_projection_is_looked_at_block_by_block(tmp_path: Path, tiny: Tiny) -> None:
    run = run_of(tmp_path / "a", tiny("gpt2"), targets=["q", "v"], rank=3, alpha=6)
    found = analyze([run], Silent())
    state, base = load_file(run / "adapter.safetensors"), load_file(tiny("gpt2") / "model.safetensors")
    matrices_ = found.runs[0].matrices
    assert [one.site.label for one in matrices_] == ["layer 0 q", "layer 0 v", "layer 1 q", "layer 1 v"]
    for one in matrices_:
        path, name, size = one.site.path, one.site.block, one.shape[0]
        delta = 2 * state[f"{path}.update.{name}.B"].double() @ state[f"{path}.update.{name}.A"].double()
        stored = base.get(f"{path}.weight", base.get(f"{path.removeprefix('transformer.')}.weight"))
        assert stored is not None
        weight = stored.double().T[{"q": slice(size), "v": slice(2 * size, 3 * size)}[name]]
        same(one, delta, weight, 3)


def same(one: Any, delta: Tensor, weight: Tensor, rank: int) -> None:
    """Fails unless a matrix was analysed as its whole ΔW and W would be."""
    u, values, vt = torch.linalg.svd(delta)
    spectrum, amplified = one.spectrum, one.amplification
    kept = len(spectrum.values)
    torch.testing.assert_close(torch.tensor(spectrum.values), values[:kept].float(), rtol=1e-4, atol=1e-5)
    assert one.shape == tuple(delta.shape)
    assert spectrum.norm == pytest.approx(float(delta.norm()), rel=1e-5)
    assert amplified.directions == rank
    onto = float((u[:, :rank].T @ weight @ vt[:rank].T).norm())
    assert amplified.onto_update == pytest.approx(onto, rel=1e-3)
    assert amplified.base_norm == pytest.approx(float(weight.norm()), rel=1e-4)
    assert amplified.onto_base == pytest.approx(float(torch.linalg.svdvals(weight)[:rank].norm()), rel=1e-4)
    assert amplified.factor == pytest.approx(float(delta.norm()) / onto, rel=1e-3)


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("llama", {"targets": ["q", "down"], "dora": True}),
        ("llama", {"targets": ["k"], "init": "pissa"}),
        ("gpt2", {"targets": ["q", "o"], "dora": True}),
        ("gpt2", {"targets": ["*.c_attn"]}),
        ("gpt2", {"targets": ["lm_head", "*.wte"]}),
        ("gpt_neox", {"targets": ["q", "k"]}),
    ],
)
def test_it_is_what_a_merge_would_add(tmp_path: Path, tiny: Tiny, model_type: str, method: dict[str, Any]) -> None:
    run = run_of(tmp_path / "a", tiny(model_type), rank=2, alpha=4, **method)
    opened = open_run(run)
    found = {one.site: one for one in analyze([run], Silent()).runs[0].matrices}
    there = matrices(opened)
    assert list(found) == list(there)
    for site, matrix in there.items():
        stored = matrix.layer.frozen.get_parameter("weight").detach()
        moved = matrix.layer.edit(lambda stored=stored: iter([(0, stored)])).rows(stored, 0)  # type: ignore[misc]
        delta, weight = moved.double() - stored.double(), stored.double()
        if weight.shape != (matrix.layer.update.factors()[0].shape[0], weight.shape[1]) or "c_" in site.path:
            delta, weight = delta.T, weight.T
        same(found[site], matrix.rows(delta), matrix.rows(weight), len(matrix.pair.A))


def test_a_planted_update_end_to_end(tmp_path: Path, tiny: Tiny) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny("llama"), base)
    tensors = load_file(base / "model.safetensors")
    name = next(key for key in tensors if key.endswith("layers.1.self_attn.q_proj.weight"))
    u, _, vt = torch.linalg.svd(tensors[name])
    values = torch.linspace(4, 1, len(vt))
    tensors[name] = (u[:, : len(vt)] * values) @ vt
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    run = run_of(tmp_path / "a", base, targets=["q"], rank=2, alpha=2)
    file = run / "adapter.safetensors"
    state, provenance = read_adapter(file)
    path = "model.layers.1.self_attn.q_proj.update"
    state[f"{path}.A"], state[f"{path}.B"] = vt[[5, 9]] * 3, u[:, [5, 9]] * torch.tensor([2.0, 1.0])
    save_adapter(file, state, provenance)
    one = next(one for one in analyze([run], Silent()).runs[0].matrices if one.site.layer == 1)
    assert one.spectrum.values == pytest.approx([6, 3], rel=1e-5)
    assert (one.spectrum.energy_rank, one.rank) == (2, 2)
    assert one.amplification is not None
    onto = float(values[[5, 9]].norm())
    assert one.amplification.onto_update == pytest.approx(onto, rel=1e-4)
    assert one.amplification.onto_base == pytest.approx(float(values[:2].norm()), rel=1e-4)
    assert one.amplification.factor == pytest.approx(math.sqrt(45) / onto, rel=1e-4)


def test_several_runs(tmp_path: Path, tiny: Tiny, cli: Callable[..., tuple[int, str, str]]) -> None:
    base = tiny("gpt2")
    one = run_of(tmp_path / "r2", base, 1, targets=["q", "v"], rank=2)
    other = run_of(tmp_path / "r4", base, 2, targets=["v", "k"], rank=4)
    out = tmp_path / "out"
    code, said, err = cli(one, other, one, "--out", out, "--layer", 0)
    assert (code, err) == (0, "")
    assert f"written: {out / 'analysis.md'}" in said
    assert "trained with rank 2; rank 2 keeps 99% of the energy" in said
    names = {"analysis.json", "analysis.md", *(f"{kind}_{n}.png" for kind in ("energy", "phi") for n in (1, 2, 3))}
    assert {file.name for file in out.iterdir()} == names
    facts = json.loads((out / "analysis.json").read_text())
    assert facts["layer"] == 0
    assert [len(run["matrices"]) for run in facts["runs"]] == [4, 4, 4]
    first, self_, _ = facts["pairs"]
    assert [(one["layer"], one["block"]) for one in first["matrices"]] == [(0, "v"), (1, "v")]
    assert torch.tensor(first["matrices"][0]["A"]["phi"]).shape == (2, 4)
    assert first["matrices"][0]["A"]["space"] == 64
    for matrix in self_["matrices"]:
        for factor in "AB":
            torch.testing.assert_close(torch.tensor(matrix[factor]["phi"]), torch.ones(2, 2), rtol=0, atol=1e-5)
    page = (out / "analysis.md").read_text()
    assert all(f"({name})" in page for name in names if name.endswith(".png"))
    assert "have the same train.seed, 1: their A's began with the same numbers" in page
    code, said, _ = cli(one, "--out", out, "--json")  # in the place of the other
    assert json.loads(said)["pairs"] == []
    assert {file.name for file in out.iterdir()} == {"analysis.json", "analysis.md", "energy_1.png"}


def test_runs_of_one_seed_start_alike(tiny: Tiny) -> None:
    """What the note about seeds is for."""
    starts = []
    for rank in (2, 8):
        made = prepare(Base(base=str(tiny("llama"))), [LoRA(rank=rank, alpha=4, targets=["q"])], Head("generation"), 1)
        layer = next(module for module in made.model.modules() if isinstance(module, LoRALayer))
        starts.append(layer.update.factors()[1])
    assert torch.equal(starts[0], starts[1][:2])


def test_a_base_in_4_bits_is_looked_at_as_those_left_it(tmp_path: Path, tiny: Tiny) -> None:
    plain = run_of(tmp_path / "plain", tiny("llama"), targets=["q"])
    quantised = moved_run(
        tmp_path / "nf4", tiny("llama"), "completion", model={"quantize": "nf4"}, method={"targets": ["q"]}
    )
    one, other = analyze([plain, quantised], Silent()).runs
    path = one.matrices[0].site.path
    live = open_run(quantised).prepared.model.get_submodule(path)
    norms = [run.matrices[0].amplification.base_norm for run in (one, other) if run.matrices[0].amplification]
    assert norms[1] == pytest.approx(float(weight_of(live.frozen).float().norm()), rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=0.01)
    assert norms[0] != pytest.approx(norms[1], rel=1e-5)


def test_one_factor_of_zeros_is_left_out(tmp_path: Path, tiny: Tiny) -> None:
    run = run_of(tmp_path / "a", tiny("llama"), targets=["q"])
    state, provenance = read_adapter(run / "adapter.safetensors")
    state["model.layers.0.self_attn.q_proj.update.B"].zero_()
    save_adapter(run / "adapter.safetensors", state, provenance)
    found = analyze([run, run], Silent(), layer=0)
    first = found.runs[0].matrices[0]
    assert first.amplification is None
    assert (first.spectrum.energy_rank, first.spectrum.effective_rank) == (0, 0.0)
    assert next(iter(found.pairs[0].overlaps.values()))["B"].first is None
    write(found, tmp_path / "out")
    assert not list((tmp_path / "out").glob("phi_*.png"))
    assert "layer 0 q" in (tmp_path / "out/analysis.md").read_text()


def test_what_cannot_be_analysed(tmp_path: Path, tiny: Tiny) -> None:
    none: dict[str, Any] = {"rank": "absent", "alpha": "absent"}
    llama = run_of(tmp_path / "llama", tiny("llama"), targets=["q"])
    with pytest.raises(CheckpointError, match=r"is of the base gpt2, and .* of llama"):
        analyze([llama, run_of(tmp_path / "gpt2", tiny("gpt2"))], Silent())
    bitfit = run_of(tmp_path / "bitfit", tiny("gpt2"), name="bitfit", **none)
    full = run_of(tmp_path / "full", tiny("gpt2"), name="full", **none)
    with pytest.raises(CheckpointError) as raised:
        analyze([bitfit, full], Silent())
    assert [problem.split(": ", 1)[1] for problem in raised.value.problems] == [
        f"was trained by {name}, which has no low-rank update; analyze takes runs of lora"
        for name in ("bitfit", "full")
    ]
    other = run_of(tmp_path / "other", tiny("llama"), targets=["v", "k"])
    with pytest.raises(CheckpointError, match=r"adapts k, v, and .*llama q: they share no matrix"):
        analyze([llama, other], Silent())
    with pytest.raises(RecipeError, match="--layer 7: the adapted layers are 0, 1"):
        analyze([llama], Silent(), layer=7)
    state, provenance = read_adapter(llama / "adapter.safetensors")
    zero = {name: value * (not name.endswith(".B")) for name, value in state.items()}
    save_adapter(llama / "adapter.safetensors", zero, provenance)
    with pytest.raises(CheckpointError, match="its update is zero"):
        analyze([llama], Silent())


def test_another_directory_is_left_alone(tmp_path: Path, cli: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "energy_1.png").write_text("mine")
    code, _, err = cli(tmp_path / "no-such-run", "--out", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path} exists and is no analysis; choose another --out\n")
    check_place(tmp_path / "new")
    code, _, err = cli(tmp_path / "no-such-run")
    assert (code, "not a run directory" in err) == (1, True)


def test_the_default_place(tmp_path: Path, tiny: Tiny, cli: Callable[..., tuple[int, str, str]]) -> None:
    run = moved_run(tmp_path, tiny("bert"))
    assert cli(run)[0] == 0
    assert (run / "analysis/analysis.json").is_file()
    assert cli(run)[0] == 0
    shown = [one["name"] for one in json.loads((run / "analysis/analysis.json").read_text())["runs"][0]["matrices"]]
    assert set(shown) == {"q", "v"}

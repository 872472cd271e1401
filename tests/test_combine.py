from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import logits, moved_run
from torch import Tensor, nn

from lorakit.checkpoint import open_run
from lorakit.cli import main
from lorakit.combine import combine
from lorakit.errors import CheckpointError, MergeError, RecipeError
from lorakit.layers.low_rank import LoRALayer
from lorakit.merge_plan import adapted_layers

Tiny = Callable[[str], Path]
CASES = [
    ("llama", {"targets": ["q", "v"]}, {"targets": ["q", "v"]}),
    ("llama", {"targets": ["all-linear"], "rslora": True}, {"targets": ["q"], "rank": 3, "alpha": 5}),
    ("llama", {"targets": ["up"], "ranks": {"*.layers.1.*": 4}}, {"targets": ["up"], "alphas": {"*.layers.0.*": 3}}),
    ("gpt2", {"targets": ["q", "v"]}, {"targets": ["v", "k"], "rank": 3}),
    ("gpt2", {"targets": ["q"], "rank": 3}, {"targets": ["*.c_attn", "o"], "alpha": 1}),
    ("gpt2", {"targets": ["q", "v"], "ranks": {"*.h.0.*": 3}}, {"targets": ["v"], "rank": 5, "alpha": 7}),
    ("gpt_neox", {"targets": ["q", "v"]}, {"targets": ["all-linear"], "init": "gaussian"}),
    ("llama", {"targets": ["*.embed_tokens"]}, {"targets": ["lm_head"], "rank": 3}),
]


def deltas(model: nn.Module) -> dict[str, Tensor]:
    """ΔW of every adapted module, in float64."""
    layers = {path: layer for path, layer in adapted_layers(model).items() if isinstance(layer, LoRALayer)}
    factors = {path: layer.update.factors() for path, layer in layers.items()}
    return {path: left.double() @ right.double() for path, (left, right) in factors.items()}


@pytest.mark.parametrize("weights", [None, [0.5, -2.0]])
@pytest.mark.parametrize(("model_type", "first", "second"), CASES)
def test_the_update_is_the_sum(
    tmp_path: Path, tiny: Tiny, model_type: str, first: dict[str, Any], second: dict[str, Any], weights: Any
) -> None:
    runs = [
        moved_run(tmp_path / str(seed), tiny(model_type), "completion", seed, method=method)
        for seed, method in enumerate((first, second))
    ]
    report = combine(runs, tmp_path / "sum", weights)
    assert report.max_difference < 1e-6
    one, two = (deltas(open_run(run, skeleton=True).prepared.model) for run in runs)
    opened = open_run(tmp_path / "sum")
    found = deltas(opened.prepared.model)
    assert found.keys() == one.keys() | two.keys()
    w = weights or [1.0, 1.0]
    for path, delta in found.items():
        parts = [weight * part[path] for weight, part in zip(w, (one, two), strict=True) if path in part]
        torch.testing.assert_close(delta, sum(parts[1:], parts[0]), atol=1e-7, rtol=1e-6)
    # The sum of both updates, added to the base by hand, gives the same logits.
    model = open_run(runs[0], base_only=True).prepared.model
    tied = dict(model.named_parameters(remove_duplicate=False))
    if not {"lm_head", "model.embed_tokens"} & found.keys():  # tied: the two uses part
        with torch.no_grad():
            for path, delta in found.items():
                weight = tied[f"{path}.weight"]
                weight.add_((delta if delta.shape == weight.shape and "c_" not in path else delta.T).float())
        torch.testing.assert_close(logits(opened.prepared.model), logits(model), atol=2e-4, rtol=1e-4)


def test_equal_settings_are_set_side_by_side_bit_for_bit(tmp_path: Path, tiny: Tiny) -> None:
    method = {"targets": ["q", "v"], "rank": 4, "alpha": 12}
    runs = [moved_run(tmp_path / str(seed), tiny("llama"), "completion", seed, method=method) for seed in (1, 2)]
    combine(runs, tmp_path / "sum")
    one, two, both = (load_file(run / "adapter.safetensors") for run in (*runs, tmp_path / "sum"))
    for name, tensor in both.items():
        assert torch.equal(tensor, torch.cat([one[name], two[name]], dim=int(name.endswith(".B"))))
    made = open_run(tmp_path / "sum", skeleton=True).recipe.method[0]
    assert (made.rank, made.alpha, made.targets) == (8, 24, ["q", "v"])  # type: ignore[attr-defined]


def test_a_rank_beyond_the_matrix_is_written_with_that_of_the_matrix(tmp_path: Path, tiny: Tiny) -> None:
    method = {"targets": ["k"], "rank": 20}  # of 32 x 64 matrices
    runs = [moved_run(tmp_path / str(seed), tiny("llama"), "completion", seed, method=method) for seed in (1, 2)]
    assert combine(runs, tmp_path / "sum").method.rank == 32


def test_runs_that_share_a_head_keep_it(tmp_path: Path, tiny: Tiny) -> None:
    run = moved_run(tmp_path / "a", tiny("bert"))
    combine([run, run], tmp_path / "sum", [0.25, 0.75])
    torch.testing.assert_close(
        logits(open_run(tmp_path / "sum").prepared.model), logits(open_run(run).prepared.model), atol=1e-5, rtol=1e-5
    )


def test_what_cannot_be_added_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    none = {"rank": "absent", "alpha": "absent"}
    bert, roberta = tiny("bert"), tiny("roberta")
    plain, other = (moved_run(tmp_path / name, bert, seed=seed) for seed, name in enumerate(("plain", "other")))
    for second, message in [
        (other, r"other/run: has a head of its own"),
        (moved_run(tmp_path / "dora", bert, method={"dora": True}), r"dora/run: is a DoRA"),
        (moved_run(tmp_path / "bitfit", bert, method={"name": "bitfit", **none}), r"was trained by bitfit; only LoRA"),
        (moved_run(tmp_path / "bias", bert, method={"bias": "all"}), r"bias/run: trained .*bias \(\d+ such\) beside"),
    ]:
        with pytest.raises(MergeError, match=message):
            combine([plain, second], tmp_path / "sum")
    with pytest.raises(CheckpointError, match=r"alien/run: is of the base roberta, and .*plain/run of bert"):
        combine([plain, moved_run(tmp_path / "alien", roberta)], tmp_path / "sum")
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(RecipeError, match="--weights"):
            combine([plain, other], tmp_path / "sum", weights)
    with pytest.raises(RecipeError, match="two runs"):
        combine([plain], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_on_the_command_line(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [moved_run(tmp_path / str(seed), tiny("gpt2"), "completion", seed) for seed in (1, 2)]
    words = [str(run) for run in runs]
    with pytest.raises(SystemExit) as done:
        main(["combine", *words, "--weights", "1,0.5", "--out", str(tmp_path / "a + b")])
    assert not done.value.code, capsys.readouterr().err
    assert "rank, alpha" in capsys.readouterr().out
    assert (tmp_path / "a + b/recipe.yaml").read_text().startswith("# Made by `lorakit combine`: 1 x run + 0.5 x run")
    with pytest.raises(SystemExit) as done:
        main(["eval", str(tmp_path / "a + b")])
    assert not done.value.code, capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main(["combine", *words, "--weights", "1;2", "--out", str(tmp_path / "c")])
    assert done.value.code == 2
    assert "numbers with commas" in capsys.readouterr().err

"""The contenders of other projects: who takes part, what is refused, and how their models get lorakit's tensors.

None of those packages is needed here; where one is installed, its training is compared.
"""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from benchmarks import by_hand, contenders, litgpt_side, torchtune_side, training, unsloth_side
from benchmarks.contenders import CONTENDERS, OTHERS, Contender
from benchmarks.pages import Results
from benchmarks.ratios import curve_difference
from benchmarks.same_start import read
from benchmarks.turns import Refused
from benchmarks.workloads import WORKLOADS
from transformers import GPT2Config, LlamaConfig

from lorakit.recipe import Recipe, load
from lorakit.surgery import trainable_state

BY_NAME = {workload.name: workload for workload in WORKLOADS}
LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


class Lines:
    """A channel without a process."""

    def __init__(self, orders: list[dict[str, Any]]) -> None:
        self.orders, self.answers = orders, list[dict[str, Any]]()

    def send(self, **answer: Any) -> None:
        self.answers.append(json.loads(json.dumps(answer)))

    def receive(self) -> dict[str, Any] | None:
        return self.orders.pop(0) if self.orders else None


def worked(contender: str, workload: str, folder: Path, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
    recipe, overrides = BY_NAME[workload].make(3, folder / contender, tiny=True)
    lines: Any = Lines(orders)
    contenders.work({"contender": contender, "recipe": str(recipe), "overrides": overrides}, lines)
    return list(lines.answers)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    file, overrides = BY_NAME["e2e"].make(3, tmp_path, tiny=True)
    return load(file, overrides)


@pytest.fixture
def sites() -> by_hand.Sites:
    """r = 3 on the query and the value of LLAMA's two blocks."""
    drawn = torch.Generator().manual_seed(1)

    def pair(out: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(3, 16, generator=drawn), torch.randn(out, 3, generator=drawn)

    return {"q_proj": [pair(16), pair(16)], "v_proj": [pair(8), pair(8)]}


def start(sites: by_hand.Sites) -> by_hand.Start:
    return by_hand.Start(LLAMA, {}, sites, 3, 6.0, torch.device("cpu"), "float32", 40)


def test_every_entry_names_a_function() -> None:
    for contender in CONTENDERS.values():
        module, _, name = contender.trains.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), name))
    assert OTHERS == ["torchtune", "litgpt", "unsloth"]


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: None if name == "torchtune" else object())
    here, out = BY_NAME["e2e"].field(on_gpu=False)
    assert here == ["lorakit", "peft", "litgpt"]
    assert out == {"torchtune": "torchtune is not installed", "unsloth": "needs a GPU"}
    assert BY_NAME["llama-8b"].field(on_gpu=True)[0] == ["lorakit", "peft", "litgpt", "unsloth"]
    here, out = BY_NAME["stsb"].field(on_gpu=True)
    assert here == ["lorakit", "peft", "peft-padded"] and set(out.values()) == {"for decoders alone"}


def test_chosen_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: object())
    workload = replace(BY_NAME["e2e"], against=bench.chosen("litgpt,peft-padded"))
    assert workload.field(on_gpu=False) == (
        ["lorakit", "litgpt"],
        {"peft-padded": "not a contender of this workload"},
    )
    with pytest.raises(SystemExit):
        bench.main(["e2e", "--contenders", "peft,axolotl"])


def test_notes_say_who_is_left_out_and_who_never_ran() -> None:
    left_out = {"torchtune": "is not installed", "litgpt": "is not installed", "peft": "why"}
    first, second, third = training.notes("e2e", ["lorakit", "unsloth"], left_out)
    assert first.startswith("e2e: unsloth: ") and "has never run" in first
    assert [second, third] == ["e2e: torchtune, litgpt left out: is not installed", "e2e: peft left out: why"]


@pytest.mark.parametrize("contender", ["torchtune", "litgpt"])
def test_another_architecture_is_refused(contender: str, tmp_path: Path) -> None:
    reason = "only Llama's architecture is converted for it, and this is gpt2"
    assert worked(contender, "gpt2-medium", tmp_path, []) == [{"refused": reason}]


def test_a_package_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: Recipe, channel: Any) -> None:
        raise ImportError("no NF4")

    for name, package in (("a", "other"), ("b", None)):
        monkeypatch.setitem(CONTENDERS, name, Contender(name, "litgpt_side:train", package))
    monkeypatch.setattr(litgpt_side, "train", broken)
    assert worked("a", "e2e", tmp_path, []) == [{"refused": "other cannot be imported: no NF4"}]
    with pytest.raises(ImportError):
        worked("b", "e2e", tmp_path, [])


class Refusing:
    """Stands for a worker: lorakit answers, the others refuse."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.name = job["contender"]

    def __enter__(self) -> "Refusing":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def answer(self) -> dict[str, Any]:
        return {"ready": True} if self.name == "lorakit" else {"refused": "cannot"}

    def ask(self, steps: int) -> dict[str, Any]:
        return {"seconds": 1.0, "tokens": 9, "losses": [1.0] * steps, "peak_bytes": 1}


def test_the_refused_are_noted_and_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "find_spec", lambda name: object())
    monkeypatch.setattr(training, "Worker", Refusing)
    results = Results({})
    training.run(BY_NAME["e2e"], 1, 1, results, tmp_path, tiny=True)
    assert [curve.contender for curve in results.curves] == ["lorakit"] and not results.failures
    assert results.notes == [
        "e2e: unsloth left out: needs a GPU",
        "e2e: peft, torchtune, litgpt left out: cannot",
    ]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (GPT2Config(), "this is gpt2"),
        (LlamaConfig(attention_bias=True), "no biases"),
        (LlamaConfig(head_dim=32, hidden_size=64, num_attention_heads=4), "heads share"),
        (LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "of the kind linear"),
    ],
)
def test_models_that_are_not_converted(config: Any, why: str) -> None:
    by_hand.plain_llama(LLAMA)
    with pytest.raises(Refused, match=why):
        by_hand.plain_llama(config)


def test_sites_of_lorakits_tensors(recipe: Recipe) -> None:
    prepared, _ = read(recipe)
    state, blocks = trainable_state(prepared.model), prepared.model.config.num_hidden_layers
    found = by_hand.lora_sites(state, blocks)
    assert list(found) == ["q_proj", "v_proj"] and {len(pairs) for pairs in found.values()} == {blocks}
    assert found["v_proj"][1][1] is state["model.layers.1.self_attn.v_proj.update.B"]
    with pytest.raises(Refused, match="every block"):
        by_hand.lora_sites(state, blocks + 1)
    with pytest.raises(Refused, match=r"model\.norm\.weight is trained"):
        by_hand.lora_sites({**state, "model.norm.weight": torch.ones(1)}, blocks)
    arguments = unsloth_side.lora_arguments(recipe, prepared)
    assert arguments["target_modules"] == ["q_proj", "v_proj"] and (arguments["r"], arguments["lora_alpha"]) == (8, 16)


def test_rates_are_lorakits(recipe: Recipe) -> None:
    """Linear to zero over three steps, without a warm-up."""
    assert by_hand.rates(recipe) == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_litgpts_tensors(sites: by_hand.Sites) -> None:
    """A row for each of query and value, one after the other, as its fused module cuts them."""
    found = litgpt_side.lora_tensors(sites)
    assert list(found)[:2] == ["transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"] and len(found) == 4
    a, b = found["transformer.h.1.attn.qkv.lora_A"], found["transformer.h.1.attn.qkv.lora_B"]
    assert (a[3:] == sites["v_proj"][1][0]).all() and (b[:16] == sites["q_proj"][1][1]).all() and b.shape == (24, 3)
    out = litgpt_side.lora_tensors({"o_proj": sites["q_proj"]})
    assert out["transformer.h.1.attn.proj.lora_B"] is sites["q_proj"][1][1] and len(out) == 4


def test_arguments_of_their_models(sites: by_hand.Sites) -> None:
    theirs = litgpt_side.config_arguments(start(sites))
    assert (theirs["n_head"], theirs["n_query_groups"], theirs["lora_r"], theirs["lora_alpha"]) == (4, 2, 3, 6.0)
    flags = [theirs[f"lora_{name}"] for name in ("query", "key", "value", "projection")]
    assert flags == [True, False, True, False]
    theirs = torchtune_side.model_arguments(start(sites))
    assert theirs["lora_attn_modules"] == ["q_proj", "v_proj"] and theirs["scale_factor"] == 1
    assert (theirs["embed_dim"], theirs["intermediate_dim"], theirs["num_kv_heads"]) == (16, 24, 2)


def test_torchtunes_rows_are_turned_as_neighbours(sites: by_hand.Sites) -> None:
    """A head of four rows: transformers turn 0 with 2 and 1 with 3; torchtune 0 with 1 and 2 with 3."""
    rows = torch.arange(8.0).view(8, 1)
    assert torchtune_side.interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    found = torchtune_side.lora_tensors(sites, 4, 2)
    assert found["layers.1.attn.v_proj.lora_b.weight"] is sites["v_proj"][1][1]
    query = sites["q_proj"][0][1]
    assert (
        found["layers.0.attn.q_proj.lora_b.weight"] == query[[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]]
    ).all()
    assert found["layers.0.attn.q_proj.lora_a.weight"] is sites["q_proj"][0][0]


class Bag(torch.nn.Module):
    """The logits of a token depend on that token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(300, 300))


def test_steps_by_hand(recipe: Recipe) -> None:
    """Rows are padded, paddings have no label, and the mean is over targets."""
    lines: Any = Lines([{"steps": 3}])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def build(given: by_hand.Start) -> by_hand.Tool:
        model = Bag()

        def loss(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append((inputs, labels))
            return torch.nn.functional.cross_entropy(
                model.table[inputs[:, :-1]].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=by_hand.IGNORED
            )

        assert given.precision == "float32" and set(given.sites) == {"q_proj", "v_proj"}
        assert "model.embed_tokens.weight" in given.weights
        return by_hand.Tool(model, loss, torch.Tensor.backward)

    with pytest.raises(contenders.Stop):
        by_hand.train(recipe, lines, build)
    ready, told = lines.answers
    assert ready == {"ready": True} and len(told["losses"]) == 3
    assert told["losses"][0] == pytest.approx(5.7038, abs=1e-3)  # ln 300: the table is zero
    assert told["losses"][0] > told["losses"][1] > 0
    for inputs, labels in seen:
        assert inputs.shape == labels.shape == (2, inputs.shape[1])
        assert ((labels == by_hand.IGNORED) | (labels == inputs)).all()


@pytest.mark.parametrize("contender", ["torchtune", "litgpt"])
def test_they_train_the_same_where_they_are_installed(contender: str, tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip(contender)
    curves = []
    for name in ("lorakit", contender):
        ready, told = worked(name, "e2e", tmp_path, [{"steps": 3}])
        assert ready == {"ready": True}
        curves.append(told["losses"])
    assert curve_difference(*curves) < 1e-5

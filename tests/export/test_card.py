"""The model card in every export: its fields, its scores, and that it names no path of the machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from adapted import open_adapted, tiny_base
from huggingface_hub import ModelCard
from small_runs import run, small_recipe

from lorakit.bases import Located
from lorakit.checkpoint import Opened, open_run
from lorakit.export import EXPORTERS, export
from lorakit.export.card import CARD
from lorakit.methods import LoRA
from lorakit.nf4 import Quantised


def card_of(opened: Opened, out: Path, to: str = "peft", **options: Any) -> str:
    export(opened, to, out, **options)
    return (out / CARD).read_text()


def fields_of(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return fields


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return open_adapted(tiny_base(tmp_path, "llama"), [LoRA(rank=4, targets=["q", "v"])], "generation")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Path:
    folder = tmp_path_factory.mktemp("card")
    run(small_recipe(folder / "recipe", tiny("bert")), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("to", "library", "tags"),
    [
        ("peft", "peft", ["lora", "lorakit"]),
        ("portable", "peft", ["lora", "lorakit"]),
        ("gguf", None, ["lora", "lorakit", "gguf"]),
        ("loralib", None, ["lora", "lorakit"]),
    ],
)
def test_the_fields_that_hubs_read(
    opened: Opened, tmp_path: Path, to: str, library: str | None, tags: list[str]
) -> None:
    text = card_of(opened, tmp_path / "out", to)
    assert fields_of(text) == {
        **({"library_name": library} if library else {}),
        "license": "other",
        "license_name": "that-of-the-base",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    assert ModelCard(text).data.license == "other"
    assert "What was proved" in text
    assert "4 modules and 0 whole tensors" in text


@pytest.mark.parametrize("to", EXPORTERS)
def test_no_path_of_the_machine_is_named(opened: Opened, tmp_path: Path, to: str) -> None:
    text = card_of(opened, tmp_path / "out", to)
    assert str(tmp_path) not in text
    assert "/data" not in text
    assert "train: train.jsonl" in text
    assert "base: base-llama" in text


def test_a_base_of_the_hub_is_linked(opened: Opened, tmp_path: Path) -> None:
    located = Located(
        "HuggingFaceTB/SmolLM2-135M", opened.prepared.located.directory, "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
    )
    opened.prepared.located = located
    text = card_of(opened, tmp_path / "out", "portable")
    fields = fields_of(text)
    assert fields["base_model"] == located.name
    assert fields["license_link"] == f"https://huggingface.co/{located.name}"
    assert f'from_pretrained("{located.name}", revision="{located.revision}")' in text
    assert f"vllm serve {located.name} --enable-lora --max-lora-rank 8" in text


def test_a_licence_that_is_given_is_the_card_s(opened: Opened, tmp_path: Path) -> None:
    text = card_of(opened, tmp_path / "out", license="apache-2.0")
    fields = fields_of(text)
    assert fields["license"] == "apache-2.0"
    assert "license_name" not in fields
    assert "## Licence" not in text
    assert "## Licence" in card_of(opened, tmp_path / "without")


def test_the_base_in_4_bits_and_a_truncation_are_said(opened: Opened, tmp_path: Path) -> None:
    opened.prepared.quantised = Quantised("nf4", "bfloat16", 64, 256, ["model.layers.0.self_attn.q_proj"], "", "cpu")
    text = card_of(opened, tmp_path / "out", rank=2)
    assert (
        "- It was trained on the base in 4 bits: nf4 with double quantisation, from bfloat16: 1 linear layers." in text
    )
    assert "\n- 4 modules' updates were cut to rank 2" in text
    opened.prepared.quantised = None
    assert "## Notes" not in card_of(opened, tmp_path / "without")


def test_the_recipe_can_be_read_again(trained: Path, tmp_path: Path) -> None:
    text = card_of(open_run(trained, skeleton=True), tmp_path / "out")
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["method"]["rank"] == 2
    assert recipe["train"]["batch_size"] == 8
    assert recipe["task"]["train"] == "train.jsonl"


def test_the_scores_are_the_report_s(trained: Path, tmp_path: Path) -> None:
    text = card_of(open_run(trained, skeleton=True), tmp_path / "out")
    accuracy = json.loads((trained / "report.json").read_text())["metrics"]["validation"]["accuracy"]
    assert f"| accuracy | {100 * accuracy:.2f} |" in text
    assert fields_of(text)["pipeline_tag"] == "text-classification"
    assert "num_labels=2" in text
    assert open_run(trained, skeleton=True).prepared.fingerprint() in text


def test_a_checkpoint_has_no_scores_of_another(trained: Path, tmp_path: Path) -> None:
    step = sorted(path.name for path in (trained / "checkpoints").iterdir())[0]
    text = card_of(open_run(trained, step, skeleton=True), tmp_path / "out")
    assert f"| checkpoint | {step} |" in text
    assert "| accuracy |" not in text
    assert f"and this is {step}." in text


def test_equal_exports_have_equal_cards(trained: Path, tmp_path: Path) -> None:
    cards = {card_of(open_run(trained, skeleton=True), tmp_path / name) for name in ("a", "b")}
    assert len(cards) == 1

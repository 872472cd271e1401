"""Encoder or decoder, found without the weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer

from lorakit.errors import ModelError
from lorakit.scaffold import family
from lorakit.scaffold.family import DECODER, ENCODER, MULTILINGUAL_ENCODER, family_of

Tiny = Callable[[str], Path]
CODE = """
import sys
from lorakit.scaffold.family import family_of
for base in sys.argv[1:]:
    found = family_of(base, wanted_decoder=True)
    print(base, found.decoder, found.guessed, found.positions)
"""


@pytest.mark.parametrize(
    ("base", "decoder", "positions"),
    [
        (ENCODER, False, 512),
        (MULTILINGUAL_ENCODER, False, 512),
        (DECODER, True, 8192),
        ("openai-community/gpt2", True, 1024),
    ],
)
def test_known_bases_need_no_network(monkeypatch, base: str, decoder: bool, positions: int) -> None:
    monkeypatch.setattr(family, "_from_hub", pytest.fail)
    found = family_of(base, wanted_decoder=not decoder)
    assert (found.decoder, found.positions, found.guessed) == (decoder, positions, False)


@pytest.mark.parametrize(("model_type", "decoder", "positions"), [("roberta", False, 128), ("gpt2", True, 128)])
def test_a_directory(tiny: Tiny, model_type: str, decoder: bool, positions: int) -> None:
    found = family_of(str(tiny(model_type)), wanted_decoder=not decoder)
    assert (found.decoder, found.positions, found.guessed) == (decoder, positions, False)
    assert found.tokenizer is not None and len(found.tokenizer.encode("abc", add_special_tokens=False).ids) == 3


def test_a_gguf_is_a_decoder_and_is_not_converted(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not read")
    assert family_of(str(tmp_path / "x.gguf"), wanted_decoder=False).decoder


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="encoder-decoder models are not supported"):
        (tmp_path / "t5").mkdir()
        (tmp_path / "t5/config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
        (tmp_path / "t5/model.safetensors").write_bytes(b"")
        family_of(str(tmp_path / "t5"), wanted_decoder=True)
    with pytest.raises(ModelError, match="is not installed"):
        family_of("package:nonesuch_at_all/x", wanted_decoder=True)


def test_the_hub_is_asked_for_the_config_alone(tmp_path: Path) -> None:
    folder = tmp_path / "hub/models/someone/small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 99}))
    (folder / "model.safetensors").write_bytes(b"never fetched")
    command = [sys.executable, "-c", CODE, "someone/small"]
    with HubServer(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        nobody = subprocess.run([*command, "no/such"], env=environment, capture_output=True, text=True, check=False)
        asked = list(hub.requests)
    assert found.stdout == "someone/small False False 99\n"
    assert nobody.returncode != 0 and "--base no/such: no such model on the hub" in nobody.stderr
    assert not [request for request in asked if "safetensors" in request]
    gone = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (gone.stdout, gone.stderr) == ("someone/small True True None\n", "")

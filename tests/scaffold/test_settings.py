"""The chosen values, by the size of the data and the family of the base."""

from typing import Any

import pytest

from lorakit.scaffold import settings
from lorakit.scaffold.lengths import Lengths
from lorakit.scaffold.settings import Setting


def values(lines: list[Setting]) -> dict[str, Any]:
    return {line.key: line.value for line in lines}


def test_encoders_get_the_papers_values_and_decoders_the_later_ones() -> None:
    encoder, decoder = values(settings.method(False, 1000)), values(settings.method(True, 1000))
    assert (encoder["rank"], encoder["alpha"], encoder["targets"]) == (8, 16, ["q", "v"])
    assert (decoder["rank"], decoder["alpha"], decoder["targets"]) == (16, 32, ["all-linear"])
    assert values(settings.method(True, 60_000))["rank"] == 64
    assert values(settings.train(False, 5000))["lr"] == 5e-4
    assert values(settings.train(True, 5000))["lr"] == 2e-4


def test_short_runs_of_decoders_get_a_higher_rate() -> None:
    assert values(settings.train(True, 150))["lr"] == 3e-4  # 19 steps, 5 times
    assert values(settings.train(True, 160))["lr"] == 2e-4  # 20 steps, 5 times


@pytest.mark.parametrize(
    ("decoder", "rows", "epochs", "batch", "eval_every"),
    [
        (False, 200, 20, 8, "epoch"),
        (False, 3668, 10, 16, "epoch"),
        (False, 50_000, 5, 16, "epoch"),
        (False, 392_702, 3, 16, 6100),
        (True, 200, 5, 8, "epoch"),
        (True, 5000, 3, 16, "epoch"),
        (True, 14_732, 3, 16, 200),
        (True, 500_000, 1, 16, 7800),
        (True, None, 3, 16, "epoch"),
    ],
)
def test_schedule(decoder: bool, rows: int | None, epochs: int, batch: int, eval_every: int | str) -> None:
    chosen = values(settings.train(decoder, rows))
    assert (chosen["epochs"], chosen["batch_size"], chosen["eval_every"]) == (epochs, batch, eval_every)
    assert chosen.get("save_every", "epoch") == eval_every


def test_every_chosen_value_has_its_reason() -> None:
    for decoder in (False, True):
        lines = [*settings.method(decoder, 9), *settings.train(decoder, 9), *settings.eval_limit(None)]
        assert [line.key for line in lines if not line.why] == ["name"]


def lengths(*rows: int) -> Lengths:
    return Lengths(sorted(rows), [], counted=True)


@pytest.mark.parametrize(
    ("rows", "positions", "chosen"),
    [
        ([10] * 100, None, 64),
        ([70] * 99 + [120], None, 128),  # the longest row is near: no row is cut
        ([70] * 199 + [900], None, 96),  # it is far: 99 % of the rows decide
        ([700] * 100, 512, 512),
        ([9000] * 100, None, 2048),
    ],
)
def test_max_length(rows: list[int], positions: int | None, chosen: int) -> None:
    assert settings.max_length(lengths(*rows), positions).value == chosen


def test_cut_rows_are_said() -> None:
    assert "0.5 % of the rows are longer and will be cut" in settings.max_length(lengths(*[70] * 199, 900), None).why
    assert "cut" not in settings.max_length(lengths(70), None).why
    assert settings.max_length(None, 256).value == 256


def test_classes_with_the_largest_share() -> None:
    line = settings.classes(["0", "1"], [30, 70])
    assert (line.value, line.why) == (["0", "1"], "70 % of the rows are 1; their names may stand here, in this order")
    assert settings.classes(["no", "yes"], [1, 1]).why == "50 % of the rows are no"


def test_generation() -> None:
    assert settings.eval_limit(200) == []
    assert settings.eval_limit(201)[0].value == 200
    assert settings.max_new_tokens(Lengths([1], list(range(100)), counted=True)).value == 96
    assert settings.max_new_tokens(None).value == 128

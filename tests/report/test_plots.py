"""The plots: readable in print and in the page's own colours."""

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lorakit.report.blocks import Picture
from lorakit.report.plots import BINS, COLOURS, ORANGE, Curve, confusion, curves, scatter, write_alone


def size(picture: Picture) -> tuple[int, int]:
    assert picture.png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", picture.png[16:24])
    return width, height


def texts(picture: Picture) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]


def loss(steps: int) -> Curve:
    return Curve("training", [(step, 2 + (step % 5) / step) for step in range(1, steps + 1)], "noise")


def test_a_picture_is_sharp_and_takes_the_page_s_colours() -> None:
    validation = Curve("validation", [(50, 2.0), (100, 1.5)], "dots")
    picture = curves("loss", "loss (nats per token)", [loss(100), validation], 100, (100, 1.5))
    assert size(picture) == (1040, 580)
    assert {"optimiser step", "loss (nats per token)", "training (mean of 5)", "published (step 100)"} <= set(
        texts(picture)
    )
    assert set(re.findall(r"(?:fill|stroke): (#\w+|var\(--\w+\))", picture.svg)) == set(COLOURS.values())
    assert "pt" not in ET.fromstring(picture.svg).attrib.get("width", "")
    used = set(re.findall(r"#(\w+)", picture.svg))
    assert set(re.findall(r'id="([^"]+)"', picture.svg)) == used, "other names would clash in a page"
    assert "<style" not in picture.svg
    assert "from 2 to 1.5" in picture.alt


@pytest.mark.parametrize("steps", [1, 2, 40, 41])
def test_a_curve_of_any_length(steps: int) -> None:
    named = f"training (mean of {1 + 2 * 1})" if steps > 40 else "training"
    assert named in texts(curves("loss", "loss", [loss(steps)], steps))


def test_a_long_curve_is_thinned() -> None:
    long, longer = (curves("loss", "loss", [loss(steps)], steps).svg for steps in (20 * BINS, 60 * BINS))
    assert len(longer) < 1.1 * len(long) < 200_000
    assert f"training (mean of {60 * (2 * (BINS // 40) + 1):,})" in longer


def test_the_same_data_are_the_same_bytes() -> None:
    one, two = (curves("loss", "loss", [loss(10)], 10) for _ in range(2))
    assert one == two


def test_a_picture_that_stands_alone_has_colours_of_its_own(tmp_path: Path) -> None:
    picture = curves("loss", "loss", [loss(10)], 10)
    write_alone(picture, tmp_path)
    assert (tmp_path / "loss.png").read_bytes() == picture.png
    svg = (tmp_path / "loss.svg").read_text()
    assert "var(--" in picture.svg
    assert "var(--" not in svg
    assert set(COLOURS) - {ORANGE} <= set(re.findall(r"(?:fill|stroke): (#\w+)", svg))


def test_confusion() -> None:
    picture = confusion("confusion_validation", [[1500, 0], [3, 1]], ["a $x$ < b", "no"])
    found = texts(picture)
    assert {"1,500", "0", "3", "1", "a $x$ < b", "no", "predicted", "label"} <= set(found)
    assert picture.alt == "confusion matrix of 2 classes: 1,501 of 1,504 rows on the diagonal"


def test_confusion_without_a_single_row_of_a_class_and_in_any_script() -> None:
    found = texts(confusion("c", [[0, 0, 0], [0, 2, 1], [0, 0, 0]], ["không", "否定", "a very long name of a class"]))
    assert {"không", "否定", "a very long name …"} <= set(found)


@pytest.mark.parametrize(("count", "numbers", "names"), [(12, True, True), (13, False, True), (41, False, False)])
def test_confusion_of_many_classes(count: int, numbers: bool, names: bool) -> None:
    labels = [f"class {i}" for i in range(count)]
    picture = confusion("c", [[7 * (i == j) for i in range(count)] for j in range(count)], labels)
    assert (("7" in texts(picture)), ("class 0" in texts(picture))) == (numbers, names)
    assert max(size(picture)) < 2200


@pytest.mark.parametrize("rows", [1, 2, 5000])
def test_scatter(rows: int) -> None:
    picture = scatter("scatter_validation", [i / 2 for i in range(rows)], [float(i) for i in range(rows)])
    dots = min(rows, 1667)
    assert picture.alt == f"predictions over labels of {dots:,} rows"
    assert picture.svg.count("<use") >= dots
    assert {"label", "prediction", "prediction = label"} <= set(texts(picture))

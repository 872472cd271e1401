import re

import pytest

from lorakit.compare.plot import plot
from lorakit.compare.table import Row


def row(name: str, parameters: int | None, value: float, std: float | None = None) -> Row:
    return Row(name, 1e-3, parameters, {"accuracy": (value, std)}, 1, 1.0, 1, 3)


CROWDED = [
    row("lora", 294912, 0.8731, 0.004), row("full", 109482240, 0.8750, 0.006), row("bitfit", 102144, 0.8652, 0.003),
    row("houlsby", 894528, 0.8745, 0.002), row("pfeiffer", 894530, 0.8740, 0.005), row("preembed", 6144, 0.71, 0.03),
    row("dora", 303000, 0.8735, 0.003), row("pissa", 294912, 0.8725, 0.002), row("rslora", 294912, 0.8733, 0.002),
]  # fmt: skip


def places(svg: str) -> dict[str, tuple[float, float]]:
    """Name → where its text stands in the picture."""
    found = re.findall(
        r'<text [^>]*?(?:x="([\d.]+)" y="([\d.]+)"|translate\(([\d.]+) ([\d.]+)\))[^>]*>([^<]*)</text>', svg
    )
    return {name: (float(x or u), float(y or v)) for x, y, u, v, name in found}


def test_every_method_has_its_name_and_no_two_stand_on_one_another() -> None:
    picture = plot(CROWDED, "accuracy")
    assert picture is not None
    found = places(picture.svg)
    names = [row.name for row in CROWDED]
    assert set(names) <= set(found)
    for index, one in enumerate(names):
        for other in names[:index]:
            (x, y), (u, v) = found[one], found[other]
            assert abs(y - v) > 7 or abs(x - u) > 15, (one, other)
    assert {"10k", "100k", "1M", "10M", "100M"} <= set(found)
    assert "lora 87.31 with 294,912" in picture.alt
    assert "accuracy" in found


def test_what_cannot_be_drawn_is_left_out() -> None:
    failed = Row("wide", 1e-3, None, {}, None, None, None, 0, ("seed 0: oh",))
    picture = plot([row("lora", 1024, 0.5), failed, row("full", 2048, float("nan"))], "accuracy")
    assert picture is not None
    assert "wide" not in picture.svg
    assert "full" not in picture.svg
    assert plot([failed], "accuracy") is None


@pytest.mark.parametrize("count", [1, 2])
def test_few_points(count: int) -> None:
    assert plot([row(f"m{index}", 1000, 0.5) for index in range(count)], "accuracy") is not None

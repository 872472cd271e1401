"""The look of a drafted recipe, and that YAML reads it as it is meant."""

import pytest

from lorakit.scaffold.layout import inline, lay_out
from lorakit.scaffold.settings import Setting
from lorakit.yamltree import parse

AWKWARD = [
    *("plain", "no", "1", "1.0", "null", "5e-4", "a, b", "it's", 'say "x"', "#1 String", "a: b", "{x}", "[", "- a"),
    *("", " edge ", "Größe", "two\n\nlines", "x" * 200, "a \\n b", "*", "&a", "!t", "%", "@", "`", "a #b", "ab\u2028c"),
]


@pytest.mark.parametrize(
    "value", [*AWKWARD, AWKWARD, {name: name for name in AWKWARD}, 0.0005, 0.06, 2, True, None, 0.0]
)
def test_values_come_back(value: object) -> None:
    text = lay_out(["top"], [("s", [Setting("key", value, "why")])])
    assert parse(text.encode(), "x").data == {"s": {"key": value}}


def test_comments_are_aligned_and_within_the_width() -> None:
    settings = [
        Setting("a", 1, "short"),
        Setting("longer", [1, 2], "word " * 30),
        Setting("bare", 1),
        Setting("far", "x" * 60, "beside, since it fits"),
        Setting("farther", "y" * 70, "above, " * 12),
        Setting("names", [f"name {n}" for n in range(40)], "listed"),
    ]
    lines = lay_out(["head"], [("section", settings)]).splitlines()
    assert lines[:3] == ["# head", "", "section:"]
    assert lines[3] == "  a: 1            # short"
    assert {line.index("#") for line in lines[3:6]} == {18}
    assert "  bare: 1" in lines
    assert any(line.endswith("  # beside, since it fits") for line in lines)
    above = next(index for index, line in enumerate(lines) if line.startswith("  # above"))
    assert lines[above + 1].startswith(("  farther: ", "  # above"))
    assert max(map(len, lines)) <= 120


def test_rates_as_people_write_them() -> None:
    assert [inline(value) for value in (5e-4, 2e-5, 0.06, 0.1)] == ["5e-4", "2e-5", "0.06", "0.1"]

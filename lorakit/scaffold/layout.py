"""A recipe as a person reads it: a value a line, its reason beside it, the reasons aligned."""

import json
import textwrap
from collections.abc import Sequence

from lorakit.scaffold.settings import Setting
from lorakit.yamltree import Value, render

WIDTH = 120
_ROOM = 48
"""A value that reaches further is not aligned with; its comment follows it, or stands above where it is long."""
_LEAST = 40
"""Columns that a comment gets at least."""


def lay_out(heading: Sequence[str], sections: Sequence[tuple[str, Sequence[Setting]]]) -> str:
    """The YAML text.

    Args:
        heading: Comment lines for the top.
        sections: Name → its lines.
    """
    parts = ["".join(f"# {line}".rstrip() + "\n" for line in heading)]
    parts += [f"{name}:\n{_section(settings)}" for name, settings in sections]
    return "\n".join(parts)


def _section(settings: Sequence[Setting]) -> str:
    lines = [_line(setting) for setting in settings]
    beside = [len(line) for line, setting in zip(lines, settings, strict=True) if setting.why and len(line) <= _ROOM]
    column = max(beside, default=0) + 2
    return "".join(_commented(line, setting.why, column) for line, setting in zip(lines, settings, strict=True))


def _line(setting: Setting) -> str:
    """Key and value; a long list goes on under its first item."""
    line = f"  {setting.key}: {inline(setting.value)}"
    if len(line) <= WIDTH or not isinstance(setting.value, list):
        return line
    start = f"  {setting.key}: ["
    lines = [start]
    for item in map(inline, setting.value):
        if len(lines[-1]) + len(item) + 2 > WIDTH:
            lines.append(" " * len(start))
        lines[-1] += f"{item}, "
    return "\n".join(line.rstrip() for line in lines).removesuffix(",") + "]"


def _commented(line: str, why: str, column: int) -> str:
    if not why:
        return f"{line}\n"
    if len(line) > _ROOM and len(line) + len(why) + 4 <= WIDTH:
        return f"{line}  # {why}\n"
    if len(line) > _ROOM:
        above = textwrap.wrap(why, WIDTH - 4)
        return "".join(f"  # {part}\n" for part in above) + f"{line}\n"
    first, *more = textwrap.wrap(why, max(_LEAST, WIDTH - column - 2))
    return f"{line:<{column}}# {first}\n" + "".join(f"{'':{column}}# {part}\n" for part in more)


def inline(value: Value) -> str:
    """A value on one line: `{ratio: 0.06}`, `[q, v]`, `5e-4`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(key)}: {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float) and 0 < value < 1e-2:
        return f"{value:.0e}".replace("e-0", "e-")
    return _scalar(value)


def _scalar(value: Value) -> str:
    """As `render` writes it inside a list, where text that means something in YAML is quoted."""
    if isinstance(value, str) and ("\n" in value or len(value) > 80 or set(value) & set(",[]{}'\"")):
        return json.dumps(value, ensure_ascii=False)
    return render([value]).rstrip("\n").removeprefix("- ")

"""The axes of a sweep, from the words of the command line.

`method.rank=1,2,4` is an axis, since its value has commas that no bracket or quote encloses; linked keys vary together:
`method.rank+method.alpha=4+8,8+16`; with `--random` a range may stand for the list: `train.lr=log(1e-5..1e-3)`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.errors import RecipeError
from lorakit.yamltree import Value, parse_value, show

METHODS = "method"
"""The title of the axis that `--methods` makes."""
DIGITS = 4
"""Significant digits of a number drawn from a range."""

_OPEN, _CLOSE = "([{", ")]}"
_RANGE = re.compile(r"(log|uniform)\((.+?)\.\.(.+)\)")
_NOT_SWEPT = {
    "train.seed": "the seeds are no axis; --seeds N makes N runs of every point, from train.seed on",
    "name": "it changes nothing that is trained",
    "paper": "it changes nothing that is trained",
    "methods": "the map is read by --methods; sweep the key itself, such as train.lr",
}


@dataclass(frozen=True)
class Range:
    """Where values are drawn from.

    Args:
        low: The least value.
        high: The greatest, which may be drawn too.
        log: Whether every factor is as likely as another, and not every distance.
        whole: Whether only whole numbers count.
    """

    low: float
    high: float
    log: bool
    whole: bool

    @property
    def count(self) -> int | None:
        """How many values there are; None: more than would ever be drawn."""
        return int(self.high) - int(self.low) + 1 if self.whole else None

    def at(self, share: float) -> int | float:
        """The value at a share, from 0 up to 1, of the range."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        if self.whole:
            return min(int(self.high), math.floor(value))
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))


@dataclass(frozen=True)
class Axis:
    """What varies.

    Args:
        keys: Of the recipe, several where they are linked; none where the values are names of methods.
        values: In the order given, each with a part per key; or none.
        range: Where they are drawn from instead.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[Value, ...], ...]
    range: Range | None = None

    @property
    def name(self) -> str:
        """In full: `method.rank+method.alpha`."""
        return "+".join(self.keys) or METHODS

    @property
    def count(self) -> int | None:
        """How many values there are; None: more than would ever be drawn."""
        return self.range.count if self.range else len(self.values)

    @property
    def number(self) -> bool:
        """Whether the values, or the first parts of linked ones, are different numbers, which have places on a line."""
        first = [value[0] for value in self.values]
        numbers = all(isinstance(part, int | float) and not isinstance(part, bool) for part in first)
        return bool(self.keys) and numbers and len({show(part) for part in first}) == len(first)

    def at(self, share: float) -> tuple[Value, ...]:
        """The value at a share, from 0 up to 1, of the axis."""
        return (self.range.at(share),) if self.range else self.values[int(share * len(self.values))]


def titles(axes: Sequence[Axis]) -> list[str]:
    """What the axes are called in tables: their keys without the section, in full where two would be alike."""
    short = [" + ".join(key.partition(".")[2] or key for key in axis.keys) or METHODS for axis in axes]
    return [one if short.count(one) == 1 else axis.name for one, axis in zip(short, axes, strict=True)]


def said(value: tuple[Value, ...]) -> str:
    """A value of an axis, for people."""
    return " + ".join(map(_said, value))


def _said(part: Value) -> str:
    if isinstance(part, list) and part and all(isinstance(item, str | int | float) for item in part):
        return ", ".join(map(_said, part))
    if isinstance(part, float):
        return f"{part:.6g}"
    return part if isinstance(part, str) and part else show(part)


def read_words(words: Sequence[str], random: bool) -> tuple[list[str], list[Axis]]:
    """Tell the axes from the values that are the same for all points.

    Args:
        words: `key=value`.
        random: Whether points are drawn, so that ranges may stand there.

    Returns:
        (overrides, axes), each in the order given.

    Raises:
        RecipeError: Everything that is wrong with the axes.
    """
    fixed: list[str] = []
    axes: list[Axis] = []
    problems: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        parts = _split(text, ",")
        drawn = [part for part in parts if _RANGE.fullmatch(part.strip())]
        if not equals or (len(parts) == 1 and "+" not in key and not drawn):
            fixed.append(word)
            continue
        try:
            axes.append(_range(key, parts, random) if drawn else _axis(key, parts))
        except RecipeError as error:
            problems += error.problems
    problems += _clashes(axes, [word.partition("=")[0] for word in fixed])
    if problems:
        raise RecipeError(*problems)
    return fixed, axes


def _axis(name: str, parts: Sequence[str]) -> Axis:
    keys = tuple(name.split("+"))
    problems, values = [], []
    if len(parts) == 1:
        problems.append(f"{name}: one value is no axis; give the keys their values one by one")
    for part in parts:
        inner = _split(part, "+") if len(keys) > 1 else [part]
        if len(inner) != len(keys):
            problems.append(f"{name}: {len(keys)} keys are linked, and {show(part)} has {len(inner)} values for them")
        elif not all(one.strip() for one in inner):
            problems.append(f"{name}: an empty value; write null where that is meant")
        else:
            try:
                values.append(tuple(parse_value(one, key) for key, one in zip(keys, inner, strict=True)))
            except RecipeError as error:
                problems += error.problems
    problems += [
        f"{name}: {said(value)} is given twice; keep one"
        for index, value in enumerate(values)
        if values.index(value) < index
    ]
    if problems:
        raise RecipeError(*dict.fromkeys(problems))
    return Axis(keys, tuple(values))


def _range(name: str, parts: Sequence[str], random: bool) -> Axis:
    if len(parts) > 1 or "+" in name:
        raise RecipeError(f"{name}: a range stands alone, for one key")
    if not random:
        raise RecipeError(f"{name}: {parts[0]} is a range; --random N draws from it, without that list the values")
    match = _RANGE.fullmatch(parts[0].strip())
    assert match is not None
    ends = [parse_value(text, name) for text in match.groups()[1:]]
    numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    if len(numbers) < 2 or numbers[0] >= numbers[1]:
        raise RecipeError(
            f"{name}: {parts[0]} is no range; write the least and the greatest number, as log(1e-5..1e-3)"
        )
    if match[1] == "log" and numbers[0] <= 0:
        raise RecipeError(f"{name}: {parts[0]}: a logarithmic range begins above 0")
    whole = all(isinstance(number, int) for number in numbers)
    return Axis((name,), (), Range(float(numbers[0]), float(numbers[1]), match[1] == "log", whole))


def _clashes(axes: Sequence[Axis], fixed: Sequence[str]) -> list[str]:
    """Keys that are no axes, and keys given twice: as such, or within the value of another."""
    problems = []
    keys = [key for axis in axes for key in axis.keys]
    for index, key in enumerate(keys):
        if why := next((why for name, why in _NOT_SWEPT.items() if f"{key}.".startswith(f"{name}.")), None):
            problems.append(f"{key}: {why}")
        others = [other for other in keys[:index] if _overlap(key, other)]
        others += [other for other in fixed if f"{other}.".startswith(f"{key}.")]
        problems += [
            f"{key}: given twice; keep one" if other == key else f"{key}: clashes with {other}; keep one"
            for other in others[:1]
        ]
    return problems


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _split(text: str, by: str) -> list[str]:
    """Parts between separators that no bracket and no quote encloses; the plus of 1e+5 separates nothing."""
    parts, depth, quote = [""], 0, ""
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not parts[-1].strip():
            quote = char
        elif char in _OPEN + _CLOSE:
            depth += 1 if char in _OPEN else -1
        elif char == by and depth <= 0 and not (by == "+" and re.search(r"\d[eE]\Z", text[:index])):
            parts.append("")
            continue
        parts[-1] += char
    return parts

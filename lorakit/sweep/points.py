"""The points of a sweep: every combination of the axes' values, or some that are drawn from them."""

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from lorakit.errors import RecipeError
from lorakit.runtime import derive
from lorakit.sweep.axes import Axis, said, titles
from lorakit.trials.jobs import slug
from lorakit.yamltree import Value, parse_value

MOST = 10_000
"""Points: more can only be a slip."""
_LENGTH = 64
"""Characters of a label, before the seed; longer ones end in a hash."""
_PLAIN = re.compile(r"[A-Za-z0-9._]+")


@dataclass(frozen=True)
class Point:
    """One combination.

    Args:
        axes: Of the sweep.
        values: One of each axis.
    """

    axes: tuple[Axis, ...]
    values: tuple[tuple[Value, ...], ...]

    @property
    def method(self) -> str | None:
        """What `--methods` calls the method here; None where it does not vary."""
        names = [value[0] for axis, value in zip(self.axes, self.values, strict=True) if not axis.keys]
        return str(names[0]) if names else None

    @property
    def places(self) -> tuple[int, ...]:
        """The place of each value on its axis; of a grid."""
        return tuple(axis.values.index(value) for axis, value in zip(self.axes, self.values, strict=True))

    @property
    def overrides(self) -> list[str]:
        """The values that lie on keys of the recipe, as `key=value`."""
        return [
            f"{key}={json.dumps(part)}"
            for axis, value in zip(self.axes, self.values, strict=True)
            for key, part in zip(axis.keys, value, strict=False)
        ]

    @property
    def title(self) -> str:
        """For people: `rank 4, targets q, v`."""
        return ", ".join(f"{title} {said(value)}" for title, value in zip(titles(self.axes), self.values, strict=True))

    @property
    def label(self) -> str:
        """For names of files: made of these values alone, so that it stays when others are added."""
        words = []
        for axis, title, value in zip(self.axes, titles(self.axes), self.values, strict=True):
            if not axis.keys:
                words.append(slug(str(value[0])))
                continue
            names = [re.sub(r"[^A-Za-z0-9_]+", "-", name) for name in title.split("+")]
            words += [f"{name.strip('-')}-{_text(part)}" for name, part in zip(names, value, strict=True)]
        whole = "_".join(words)
        return whole if len(whole) <= _LENGTH else f"{whole[: _LENGTH - 9].rstrip('-_.')}-{_hash(whole)}"


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination; the last axis varies fastest.

    Raises:
        RecipeError: There are more than `MOST`.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST:
        raise RecipeError(f"these axes make {count:,} points; draw some of them with --random N")
    return [Point(tuple(axes), values) for values in product(*(axis.values for axis in axes))]


def draw(axes: Sequence[Axis], count: int, seed: int) -> list[Point]:
    """Different points, drawn one after the other, so that a larger number begins with those of a smaller one.

    Args:
        axes: With values or ranges.
        count: How many.
        seed: The same seed and axes give the same points.

    Raises:
        RecipeError: There are not so many, or more than `MOST` are asked for.
    """
    sizes = [axis.count for axis in axes]
    there = math.prod(size for size in sizes if size is not None) if None not in sizes else None
    if there is not None and count > there:
        raise RecipeError(f"--random: {count}, but these axes make {there} points; give at most so many, or none")
    if count > MOST:
        raise RecipeError(f"--random: {count:,}; at most {MOST:,}")
    found: dict[str, Point] = {}
    for tried, point in enumerate(_draws(axes, seed), 1):
        found.setdefault(json.dumps(point.values), point)
        if len(found) == count:
            return list(found.values())
        if there is None and tried > 100 * count:  # a range so narrow that its ends round to the same number
            raise RecipeError(f"--random: {count}, but only {len(found)} different points could be drawn")
    raise AssertionError("draws do not end")


def _draws(axes: Sequence[Axis], seed: int) -> Iterator[Point]:
    # `random()` alone: of all that the module draws it is what no version of Python changes.
    stream = random.Random(derive(seed, "sweep")).random
    while True:
        yield Point(tuple(axes), tuple(axis.at(stream()) for axis in axes))


def _text(part: Value) -> str:
    """A value in names of files; what these characters cannot say ends in a hash of it."""
    if isinstance(part, float):
        plain = re.sub(r"e([-+])0*", lambda found: "e" + found[1].replace("+", ""), f"{part:.12g}")
        return plain if float(plain) == part else f"{plain}-{_hash(json.dumps(part))}"
    if part is None or isinstance(part, bool | int):
        return json.dumps(part)
    words = part if isinstance(part, list) else [part]
    if words and all(
        isinstance(word, str) and _PLAIN.fullmatch(word) and parse_value(word, "") == word for word in words
    ):
        return "-".join(map(str, words))
    shown = re.sub(r"[^A-Za-z0-9._]+", "-", json.dumps(part, ensure_ascii=True)).strip("-.")
    return f"{shown[:16]}-{_hash(json.dumps(part))}".lstrip("-")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

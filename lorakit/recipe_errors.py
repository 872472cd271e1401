"""What is wrong with a recipe, in the reader's words.

The messages are written from the JSON schema of the recipe, the same that editors use, so that what they say is allowed
cannot drift from what is allowed.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lorakit.yamltree import Path, Tree, Value, dotted, show

Schema = dict[str, Any]


class Misfit(ValueError):
    """Values that are good by themselves but not together.

    Args:
        problems: Path below the field that is being checked → what is wrong there.
    """

    def __init__(self, problems: Mapping[Path, str]) -> None:
        super().__init__("; ".join(f"{dotted(path)}: {text}" if path else text for path, text in problems.items()))
        self.problems = dict(problems)


@dataclass
class _Found:
    """What is wrong at one path; at most one of the kinds is reported."""

    missing: bool = False
    unknown: str | None = None
    """An unknown key's message."""
    refused: str | None = None
    """A value's message: of the wrong type or out of bounds."""
    said: list[str] = field(default_factory=list)
    """What validators said."""

    def messages(self) -> list[str]:
        if self.missing:
            return ["missing; this key is required"]
        return self.said + [message for message in (self.unknown or self.refused,) if message]


def explain(error: ValidationError, tree: Tree, schema: Schema) -> list[str]:
    """One message per problem, in the order of the file; the command line's last."""
    found: dict[Path, _Found] = {}
    meant: set[Path] = set()
    for detail in error.errors(include_url=False):
        _sort_in(detail, _Spot.find(schema, tree.data, detail), found, meant)
    lines: list[tuple[tuple[bool, int], str]] = []
    for path, problem in found.items():
        if problem.missing and path in meant:
            continue  # the key is there, mistyped: one typo, one message
        if any(other[: len(path)] == path and other != path for other in found):
            problem.refused = None  # an item of it is wrong: the list or mapping itself need not be named as well
        place = tree.place(path)
        line = place.rpartition(":")[2]
        order = (not line.isdigit(), int(line) if line.isdigit() else 0)
        prefix = f"{place}: {dotted(path)}: " if path else f"{place}: "
        lines += [(order, prefix + message) for message in problem.messages()]
    return [text for _, text in sorted(lines, key=lambda item: item[0])]


def _sort_in(detail: ErrorDetails, spot: "_Spot", found: dict[Path, _Found], meant: set[Path]) -> None:
    """Note one of pydantic's errors under the path that it is about."""
    kind, path, last = detail["type"], spot.path, detail["loc"][-1:]
    if kind == "missing" and isinstance(last[0], str):
        found.setdefault(path, _Found()).missing = True
    elif kind == "extra_forbidden" or last == ("[key]",):
        keys = spot.keys
        guess = _near(str(path[-1]), keys)
        if guess:
            meant.add((*path[:-1], guess))
        found.setdefault(path, _Found()).unknown = _unknown(guess, keys)
    elif kind in ("union_tag_invalid", "union_tag_not_found") and isinstance(spot.value, dict):
        names = [name for option in spot.options() if (name := _name_of(option)) is not None]
        given = refusal_of(spot.value["name"], names) if "name" in spot.value else f"missing; allowed: {_quoted(names)}"
        found.setdefault((*path, "name"), _Found()).refused = given
    elif kind == "value_error":
        cause = detail["ctx"]["error"]
        for below, text in (cause.problems if isinstance(cause, Misfit) else {(): str(cause)}).items():
            found.setdefault((*path, *below), _Found()).said.append(text)
    else:
        found.setdefault(path, _Found()).refused = spot.refusal()


@dataclass
class _Spot:
    """A place in the data together with the part of the schema that describes it.

    Args:
        path: From the top of the data.
        value: What stands there.
        node: Its schema.
        root: The whole schema, which holds the definitions.
        keys: Allowed keys of the mapping around, where `path` ends in a key that is unknown.
    """

    path: Path
    value: Any
    node: Schema
    root: Schema
    keys: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, root: Schema, data: Value, detail: ErrorDetails) -> "_Spot":
        """Follow pydantic's `loc`, leaving out the parts that name members of unions and not places in the data."""
        spot, steps = cls((), data, root, root), detail["loc"]
        if steps[-1:] == ("[key]",):
            steps = steps[:-1]
        elif detail["type"] not in ("extra_forbidden", "missing"):
            return spot.along(steps)
        above, last = steps[:-1], steps[-1]
        spot = spot.along(above)
        if isinstance(last, int):  # a tuple that is too short: it is the tuple that is wrong
            return spot
        return cls((*spot.path, last), None, {}, root, [key for option in spot.options() for key in _keys(option)])

    def along(self, steps: Sequence[str | int]) -> "_Spot":
        """Where the steps that exist lead to."""
        spot = self
        for step in steps:
            spot = spot._step(step) or spot
        return spot

    def _step(self, step: str | int) -> "_Spot | None":
        inside = isinstance(step, str) and isinstance(self.value, dict) and step in self.value
        inside |= isinstance(step, int) and isinstance(self.value, list) and step < len(self.value)
        if not inside:
            return None
        for option in self.options():
            child = _child(option, step)
            if child is not None:
                return _Spot((*self.path, step), self.value[step], child, self.root)
        return None

    def options(self) -> list[Schema]:
        """The alternatives that the schema offers; of sections told apart by `name`, the one that the data names."""
        found = list(_alternatives(self.node, self.root))
        name = self.value.get("name") if isinstance(self.value, dict) else None
        return [option for option in found if name is not None and _name_of(option) == name] or found

    def refusal(self) -> str:
        """What was given and what is allowed."""
        options = list(_alternatives(self.node, self.root))
        words = [_describe(option, self.root) for option in options]
        guess = _near(self.value, [str(value) for option in options for value in _constants(option)])
        return _got(self.value, guess, list(dict.fromkeys(word for group in words for word in group)))


def _alternatives(node: Schema, root: Schema) -> Iterator[Schema]:
    """The schemas of which one must hold, with references followed."""
    if "$ref" in node:
        yield from _alternatives(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    elif "anyOf" in node or "oneOf" in node:
        for option in node.get("anyOf") or node["oneOf"]:
            yield from _alternatives(option, root)
    else:
        yield node


def _child(option: Schema, step: str | int) -> Schema | None:
    if isinstance(step, int):
        fixed = option.get("prefixItems", [])
        child = fixed[step] if step < len(fixed) else option.get("items")
    else:
        child = option.get("properties", {}).get(step, option.get("additionalProperties"))
    return child if isinstance(child, dict) else None


def _keys(option: Schema) -> list[str]:
    return [*option.get("properties", {}), *option.get("propertyNames", {}).get("enum", [])]


def _name_of(option: Schema) -> Any:
    return option.get("properties", {}).get("name", {}).get("const")


def _constants(option: Schema) -> list[Any]:
    return [option["const"]] if "const" in option else list(option.get("enum", []))


def _describe(option: Schema, root: Schema) -> list[str]:
    """The values that a schema without alternatives allows, in words."""
    constants = _constants(option)
    if constants:
        return [show(value) for value in constants]
    kind = option.get("type")
    if kind == "array":
        items = option.get("prefixItems") or [option.get("items", {})]
        size = f" of {len(items)}" if "prefixItems" in option else " of at least 1" if option.get("minItems") else ""
        words = list(dict.fromkeys(word for inner in _alternatives(items[0], root) for word in _describe(inner, root)))
        return [f"a list{size} (each: {_choice(words)})"]
    if kind == "string":
        most = f" of at most {option['maxLength']} characters" if "maxLength" in option else ""
        pattern = f" that matches {option['pattern']}" if "pattern" in option else ""
        return [f"{'text, not empty' if option.get('minLength') else 'text'}{most}{pattern}"]
    if _name_of(option) is not None:
        return [f"{{name: {_name_of(option)}, ...}}"]
    nouns = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {option[key]:.10g}" for key, sign in signs.items() if key in option]
    return [f"{nouns.get(str(kind), 'a mapping')} {' and '.join(bounds)}".rstrip()]


def _near(value: Any, allowed: Sequence[str]) -> str | None:
    """The allowed text that looks like what was given."""
    lower = {text.lower(): text for text in reversed(allowed)}
    close = difflib.get_close_matches(value.lower(), lower, n=1) if isinstance(value, str) else []
    return lower[close[0]] if close else None


def refusal_of(value: Any, allowed: Sequence[str]) -> str:
    """That a value is none of the allowed ones, with the nearest of them."""
    return _got(value, _near(value, allowed), [show(text) for text in allowed])


def _quoted(words: Sequence[str]) -> str:
    return _choice([show(word) for word in words])


def _got(value: Any, guess: str | None, allowed: Sequence[str]) -> str:
    hint = f" did you mean {show(guess)}?" if guess and guess != value else ""
    return f"got {show(value)};{hint} allowed: {_choice(allowed)}"


def _unknown(guess: str | None, keys: Sequence[str]) -> str:
    hint = f" did you mean {show(guess)}?" if guess else ""
    return f"unknown key;{hint} allowed: {', '.join(keys)}"


def _choice(words: Sequence[str]) -> str:
    """`a, b or c`; of many named sections, which would fill lines, the first stands for all."""
    named = [word for word in words if word.startswith("{name: ")]
    if len(named) > 2:
        words = [word for word in words if word not in named[1:]]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))

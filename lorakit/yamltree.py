"""YAML text as plain data that knows where each value stands.

Scalars follow the core schema of YAML 1.2 (section 10.3.2): `5e-4` is a number, `on` and `no` are text, `012` is
twelve. (PyYAML's own rules are YAML 1.1, where `5e-4` is text and `no` is false.) Duplicate keys, keys that are not
text, tags and numbers that are not finite are refused, and size, depth and aliases are bounded: a recipe may come from
a stranger.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import yaml

from lorakit.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
"""Scalars, lists and mappings, with every alias expanded."""
MAX_DEPTH = 50

Scalar: TypeAlias = "str | int | float | bool | None"
Value: TypeAlias = "Scalar | list[Value] | dict[str, Value]"
Path: TypeAlias = "tuple[str | int, ...]"
"""Keys and list indices, from the top."""

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_COMMAND_LINE = "command line"


class Tree:
    """A mapping read from YAML, and the place of each of its values.

    Args:
        data: The mapping, free of shared parts: aliases are expanded into copies.
        places: Path → where that key or list item stands, as `recipe.yaml:12` or `command line`.
    """

    def __init__(self, data: dict[str, Value], places: dict[Path, str]) -> None:
        self.data = data
        self.places = places

    def place(self, path: Path) -> str:
        """Where the value at a path stands; for one that is absent, where the section that lacks it stands."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def assign(self, key_path: str, value: Value) -> None:
        """Replace or add one value, as `train.lr=1e-4` on the command line does; missing mappings on the way are made.

        Args:
            key_path: Keys and list indices joined by dots, as `method.0.rank`.
            value: What to put there.

        Raises:
            RecipeError: The path leads through a value that has no keys, or past the end of a list.
        """
        *sections, last = key_path.split(".")
        node: Value = self.data
        path: Path = ()
        for key in sections:
            step = _step(node, key, path, key_path)
            path += (step,)
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
                self.places[path] = _COMMAND_LINE
            node = node[step]  # type: ignore[index]
        step = _step(node, last, path, key_path)
        node[step] = value  # type: ignore[index]
        path += (step,)
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}
        self.places[path] = _COMMAND_LINE


def _step(node: Value, key: str, path: Path, key_path: str) -> str | int:
    """The key as an index into `node`."""
    at = dotted(path)
    if isinstance(node, dict):
        return key
    if not isinstance(node, list):
        raise RecipeError(f"{_COMMAND_LINE}: {key_path}: {at} is {show(node)}, which has no keys")
    if not re.fullmatch("[0-9]{1,4}", key) or int(key) >= len(node):
        mend = f"name an item of it, {at}.0 to {at}.{len(node) - 1}" if node else f"replace it whole, {at}=[…]"
        raise RecipeError(f"{_COMMAND_LINE}: {key_path}: {at} is a list of {len(node)}; {mend}")
    return int(key)


def dotted(path: Path) -> str:
    """A path as messages and overrides write it: `method.0.rank`."""
    return ".".join(str(part) if str(part).isprintable() else show(part) for part in path)


def show(value: Value) -> str:
    """A value as messages show it: as JSON, which is YAML too, on one line, printable, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
    return text if len(text) <= 60 else text[:57] + "..."


def read(path: str | os.PathLike[str]) -> Tree:
    """Read a YAML file whose top is a mapping.

    Raises:
        RecipeError: The file cannot be read, or see `parse`.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{os.fspath(path)}: cannot be read: {reason}") from error
    return parse(raw, os.fspath(path))


def parse(raw: bytes, source: str) -> Tree:
    """Parse the bytes of a YAML file whose top is a mapping.

    Args:
        raw: UTF-8, with or without a byte order mark; at most `MAX_BYTES`.
        source: What to call the file in messages.

    Raises:
        RecipeError: Not UTF-8, not YAML, empty, no mapping at the top, or something that this module refuses. Where the
            text parses, all such problems at once, each with its line.
    """
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{source}: larger than {MAX_BYTES:,} bytes; this is no recipe")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{source}:{line}: not UTF-8 text; save the file as UTF-8") from error
    try:
        root = _Builder(text).document()
        if root is None:
            raise _RefusedError((1, "the file is empty"))
        if not isinstance(root.value, dict):
            raise _RefusedError((root.line, "the top of the file must be a mapping, lines of `key: value`"))
        data, lines = _flatten(root)
    except _RefusedError as error:
        raise RecipeError(*(f"{source}:{line}: {message}" for line, message in sorted(error.problems))) from error
    assert isinstance(data, dict)
    return Tree(data, {path: f"{source}:{line}" for path, line in lines.items()})


def parse_value(text: str, key: str) -> Value:
    """Parse one value given on the command line: `1e-4`, `[q, v]`, `{train: 2000}`; nothing at all is null.

    Args:
        text: YAML, on one line or more.
        key: The key that it was given for, for messages.

    Raises:
        RecipeError: As `parse`, but any value is good.
    """
    try:
        if len(text) > MAX_BYTES:
            raise _RefusedError((1, f"longer than {MAX_BYTES:,} characters"))
        root = _Builder(text).document()
        return None if root is None else _flatten(root)[0]
    except _RefusedError as error:
        raise RecipeError(*(f"{_COMMAND_LINE}: {key}: {message}" for _, message in error.problems)) from error


def render(data: Value) -> str:
    """YAML text that `parse` reads back as equal data.

    Text that a YAML 1.1 reader would take for something else (`no`, `1:30`) is quoted as well.

    Args:
        data: Plain data; text without lone surrogates, finite numbers, integers below 2⁶³.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which quotes text that reads as a number in YAML 1.1, and here in 1.2 too (`5e-4`, `0o7`)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Line ends of Unicode: PyYAML leaves them as they are in single quotes, and reads them there as spaces.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _tag, _pattern in {"int": _INT, "float": _FLOAT}.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list("-+.0123456789"))


class _RefusedError(Exception):
    """Problems of the text as (line from 1, message)."""

    def __init__(self, *problems: tuple[int, str]) -> None:
        super().__init__(problems)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Node:
    """A value with its line; aliases share nodes until `_flatten`."""

    value: "Scalar | list[_Node] | dict[str, _Node]"
    line: int
    keys: dict[str, int]
    """Lines of a mapping's keys."""


class _Builder:
    """Builds nodes from the parser's events.

    Events rather than PyYAML's composer: they tell plain scalars from quoted and tagged ones, and arrive one at a time,
    so that the bounds stop a hostile file before it is parsed whole.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.anchors: dict[str, _Node | None] = {}
        self.problems: list[tuple[int, str]] = []
        self.count = 0

    def document(self) -> _Node | None:
        """The root, or None where there is nothing but comments.

        Raises:
            _RefusedError: With what was noted on the way, and the one problem that stopped the reading, if one did.
        """
        root = None
        try:
            # Here, not in __init__: PyYAML looks for unprintable characters as soon as it is made.
            self.events = cast(Any, yaml.SafeLoader(self.text))  # the methods used here have no types
            root = self._only_document()
        except _RefusedError as error:
            self.problems += error.problems
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            self.problems.append((line, f"not YAML: unprintable character U+{error.character:04X}"))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.problems.append((mark.line + 1 if mark else 1, f"not YAML: {error.problem or error.context}"))
        except (ValueError, OverflowError):
            # PyYAML lets these out of `"\\UFFFFFFFF"` and of %YAML versions with thousands of digits.
            self.problems.append((self.events.line + 1, "not YAML: an escape or a version that is out of range"))
        if self.problems:
            raise _RefusedError(*self.problems)
        return root

    def _only_document(self) -> _Node | None:
        self.events.get_event()
        if self.events.check_event(yaml.StreamEndEvent):
            return None
        self.events.get_event()
        root = self._node(())
        self.events.get_event()
        if not self.events.check_event(yaml.StreamEndEvent):
            raise _RefusedError((_line(self.events.peek_event()), "a second document starts here; keep one"))
        return root

    def _node(self, path: Path) -> _Node:
        event = self.events.get_event()
        line = _line(event)
        self.count += 1
        _bound(self.count, path, line)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, line)
        if event.tag is not None:
            self.problems.append((line, f"{_name(path)}the tag {event.tag} is not allowed; write plain YAML"))
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(path, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = _Node(list(self._items(path)), line, {})
        else:
            node = _Node(self._scalar(event, path, line), line, {})
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str | None, line: int) -> _Node:
        if anchor is None or anchor not in self.anchors:
            raise _RefusedError((line, f"*{anchor} has no anchor &{anchor} before it"))
        node = self.anchors[anchor]
        if node is None:
            raise _RefusedError((line, f"*{anchor} stands inside what it repeats"))
        return node

    def _items(self, path: Path) -> Iterator[_Node]:
        index = 0
        while not self.events.check_event(yaml.SequenceEndEvent):
            yield self._node((*path, index))
            index += 1
        self.events.get_event()

    def _mapping(self, path: Path, line: int) -> _Node:
        value: dict[str, _Node] = {}
        keys: dict[str, int] = {}
        while not self.events.check_event(yaml.MappingEndEvent):
            key_line = _line(self.events.peek_event())
            if not self.events.check_event(yaml.ScalarEvent, yaml.AliasEvent):
                raise _RefusedError((key_line, f"{_name(path)}a key must be text, not a list or a mapping"))
            key = self._node(path).value
            name = key if isinstance(key, str) else "?"
            node = self._node((*path, name))
            if not isinstance(key, str):
                shown = "" if isinstance(key, list | dict) else f" {show(key)}"
                self.problems.append((key_line, f"{_name(path)}the key{shown} is not text; put it in quotes"))
            elif key in keys:
                lines = f"lines {keys[key]} and {key_line}" if keys[key] != key_line else f"line {key_line}"
                self.problems.append((key_line, f"{_name((*path, key))}given twice, on {lines}; keep one"))
            else:
                value[key], keys[key] = node, key_line
        self.events.get_event()
        return _Node(value, line, keys)

    def _scalar(self, event: yaml.ScalarEvent, path: Path, line: int) -> Scalar:
        try:
            value = _resolve(event.value) if event.implicit[0] else event.value
            if isinstance(value, str):  # as JSON writes them, two escapes may be one character: "\\ud83d\\ude00"
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeError:
            self.problems.append((line, f"{_name(path)}the text holds half of a surrogate pair, which is no character"))
        except ValueError as error:
            self.problems.append((line, f"{_name(path)}{error}"))
        else:
            return value
        return None


def _resolve(text: str) -> Scalar:
    """A plain scalar's value by the core schema.

    Raises:
        ValueError: A number that is not finite, or an integer beyond 64 bits.
    """
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        # Python's int() of a very long text is slow, and refused; zeros in front are no reason to refuse a number.
        digits = text.lstrip("+-").lstrip("0")
        value = 2**63 if len(digits) > 30 else int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if abs(value) >= 2**63:
            raise ValueError("the number does not fit 64 bits")
        return value
    if _FLOAT.match(text):
        number = float(text.replace(".", "") if text[-1] in "fFnN" else text)
        if not math.isfinite(number):
            raise ValueError(f"got {text[:20]}; numbers must be finite")
        return number
    return text


def _flatten(root: _Node) -> tuple[Value, dict[Path, int]]:
    """Expand the aliases: the data, and path → line. A mapping's entry stands where its key does."""
    lines: dict[Path, int] = {}

    def expand(node: _Node, path: Path, line: int) -> Value:
        _bound(len(lines), path, line)
        lines[path] = line
        if isinstance(node.value, dict):
            return {key: expand(child, (*path, key), node.keys[key]) for key, child in node.value.items()}
        if isinstance(node.value, list):
            return [expand(child, (*path, index), child.line) for index, child in enumerate(node.value)]
        return node.value

    return expand(root, (), root.line), lines


def _bound(count: int, path: Path, line: int) -> None:
    if len(path) > MAX_DEPTH:
        raise _RefusedError((line, f"nested deeper than {MAX_DEPTH} levels"))
    if count > MAX_NODES:
        raise _RefusedError((line, f"more than {MAX_NODES:,} values, aliases expanded; this is no recipe"))


def _name(path: Path) -> str:
    return f"{dotted(path)}: " if path else ""


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1

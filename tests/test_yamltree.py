"""YAML 1.2 scalars, places, refusals and bounds of `lorakit.yamltree`."""

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.errors import RecipeError
from lorakit.yamltree import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Tree,
    Value,
    dotted,
    parse,
    parse_value,
    read,
    render,
    show,
)


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(text.encode() if isinstance(text, str) else text, "r.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),  # text in PyYAML's own rules, as the next two
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("12e03", 12000.0),
        ("1.0e-8", 1e-8),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e+1", -5.0),
        ("0", 0),
        ("-0", 0),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("000000000000000000000000000000000000012", 12),
        ("9223372036854775807", 2**63 - 1),
        ("1_000", "1_000"),
        ("190:20:30", "190:20:30"),
        ("1e", "1e"),
        (".", "."),
        ("0b1", "0b1"),
        ("١", "١"),  # a digit, but not one of YAML's
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("'8'", "8"),
        ('"true"', "true"),
        ("'null'", "null"),
        ("q", "q"),
        ("[q, v]", ["q", "v"]),
        ("{train: 2000}", {"train": 2000}),
        ("[1, [2, {a: }]]", [1, [2, {"a": None}]]),
        ("C:\\data", "C:\\data"),
        ('"\\n\\n"', "\n\n"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Value) -> None:
    found = parse_value(text, "key")
    assert (found, type(found)) == (value, type(value))


def test_every_key_and_item_knows_its_line() -> None:
    tree = parse(b"# a comment\na: 1\nb:\n  c:\n    - x\n    - {d: 2,\n       e: 3}\nf:\n", "r.yaml")
    assert tree.data == {"a": 1, "b": {"c": ["x", {"d": 2, "e": 3}]}, "f": None}
    assert {dotted(path): place for path, place in tree.places.items()} == {
        "": "r.yaml:2",
        "a": "r.yaml:2",
        "b": "r.yaml:3",
        "b.c": "r.yaml:4",
        "b.c.0": "r.yaml:5",
        "b.c.1": "r.yaml:6",
        "b.c.1.d": "r.yaml:6",
        "b.c.1.e": "r.yaml:7",
        "f": "r.yaml:8",
    }
    assert tree.place(("b", "c", 9, "absent")) == "r.yaml:4"


def test_byte_order_mark_and_windows_line_ends() -> None:
    tree = parse(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "r.yaml")
    assert tree.data == {"a": 1, "b": 2}
    assert tree.places["b",] == "r.yaml:2"


def test_aliases_are_copied() -> None:
    tree = parse(b"a: &x {k: [1]}\nb: *x\n", "r.yaml")
    tree.assign("b.k.0", 2)
    assert tree.data == {"a": {"k": [1]}, "b": {"k": [2]}}
    assert tree.places["b",] == "r.yaml:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1: the file is empty"),
        ("# nothing\n", "r.yaml:1: the file is empty"),
        ("- a\n", "r.yaml:1: the top of the file must be a mapping, lines of `key: value`"),
        ("\n~\n", "r.yaml:2: the top of the file must be a mapping, lines of `key: value`"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document starts here; keep one"),
        ("a: [1\nb: 2\n", "r.yaml:2: not YAML: expected ',' or ']', but got ':'"),
        ("a:\n\tb: 1\n", "r.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x00\n", "r.yaml:2: not YAML: unprintable character U+0000"),
        ('a: "\\UFFFFFFFF"\n', "r.yaml:1: not YAML: an escape or a version that is out of range"),
        ('a: "\\ud800"\n', "r.yaml:1: a: the text holds half of a surrogate pair, which is no character"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "r.yaml:4: a.b: given twice, on lines 2 and 4; keep one"),
        ("a: {b: 1, b: 2}\n", "r.yaml:1: a.b: given twice, on line 1; keep one"),
        ("a:\n  1: x\n", "r.yaml:2: a: the key 1 is not text; put it in quotes"),
        ("~: x\n", "r.yaml:1: the key null is not text; put it in quotes"),
        ("? [a]\n: x\n", "r.yaml:1: a key must be text, not a list or a mapping"),
        ("a: !!python/name:os.system\n", "r.yaml:1: a: the tag tag:yaml.org,2002:python/name:os.system is not allowed"),
        ("a: !mine {b: 1}\n", "r.yaml:1: a: the tag !mine is not allowed; write plain YAML"),
        ("a: .inf\n", "r.yaml:1: a: got .inf; numbers must be finite"),
        ("a: .NaN\n", "r.yaml:1: a: got .NaN; numbers must be finite"),
        ("a: 1e999\n", "r.yaml:1: a: got 1e999; numbers must be finite"),
        ("a: 9223372036854775808\n", "r.yaml:1: a: the number does not fit 64 bits"),
        (f"a: {'9' * 10_000}\n", "r.yaml:1: a: the number does not fit 64 bits"),
        ("a: *b\n", "r.yaml:1: *b has no anchor &b before it"),
        ("a: &b\n  - c: *b\n", "r.yaml:2: *b stands inside what it repeats"),
        (b"a: 1\nb: \xff\n", "r.yaml:2: not UTF-8 text; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), "r.yaml:1: not UTF-8 text; save the file as UTF-8"),
    ],
)
def test_refusals_name_the_line(text: str | bytes, message: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_all_problems_of_a_text_at_once() -> None:
    assert problems("a: !x 1\nb: .inf\nb: 2\n3: 4\nc: [\n") == [
        "r.yaml:1: a: the tag !x is not allowed; write plain YAML",
        "r.yaml:2: b: got .inf; numbers must be finite",
        "r.yaml:3: b: given twice, on lines 2 and 3; keep one",
        "r.yaml:4: the key 3 is not text; put it in quotes",
        "r.yaml:6: not YAML: expected the node content, but found '<stream end>'",
    ]


def nested(depth: int) -> str:
    return "a: " + "[" * (depth - 1) + "]" * (depth - 1)


def test_depth_is_bounded() -> None:
    assert parse(nested(MAX_DEPTH).encode(), "r.yaml").data
    assert problems(nested(MAX_DEPTH + 2)) == ["r.yaml:1: nested deeper than 50 levels"]
    assert problems("a: " + "[" * 500_000) == ["r.yaml:1: nested deeper than 50 levels"]
    assert problems("? " * 100_000) == ["r.yaml:1: a key must be text, not a list or a mapping"]


def test_depth_counts_aliases() -> None:
    chain = "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, MAX_DEPTH + 5))
    assert problems(chain)[0].endswith("nested deeper than 50 levels")


def test_size_is_bounded() -> None:
    items = MAX_NODES - 3  # beside them: the mapping, its key, the list
    assert len(parse(f"a: [{'1,' * items}]".encode(), "r.yaml").data["a"]) == items
    assert "more than 10,000 values" in problems(f"a: [{'1,' * (items + 1)}]")[0]
    assert "larger than 1,000,000 bytes" in problems("#" * (MAX_BYTES + 1))[0]


def test_size_counts_expanded_aliases() -> None:
    laughs = "x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n"
    laughs += "".join(f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 10))
    assert "more than 10,000 values" in problems(laughs)[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path, "nul\0.yaml"):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_read_names_the_file_as_given(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\n", encoding="utf-8")
    assert read(path).places["a",] == f"{path}:1"


def tree() -> Tree:
    return parse(b"a: {b: 1, c: null}\nl: [{x: 1}, {x: 2}]\ne: []\n", "r.yaml")


def test_assign_replaces_adds_and_makes_mappings() -> None:
    found = tree()
    found.assign("a.b", 5)
    found.assign("a.c.d", {"k": [1]})
    found.assign("l.1.x", 7)
    found.assign("n.m", None)
    assert found.data == {
        "a": {"b": 5, "c": {"d": {"k": [1]}}},
        "l": [{"x": 1}, {"x": 7}],
        "e": [],
        "n": {"m": None},
    }
    for path in (("a", "b"), ("a", "c"), ("a", "c", "d", "k", 0), ("l", 1, "x"), ("n",), ("n", "m")):
        assert found.place(path) == "command line"
    for path in (("a",), ("l", 0, "x"), ("l", 1)):
        assert found.place(path).startswith("r.yaml:")


def test_assign_forgets_the_lines_of_what_was_there() -> None:
    found = tree()
    found.assign("a", {"b": 1})
    assert found.place(("a", "b")) == "command line"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.b.c", "command line: a.b.c: a.b is 1, which has no keys"),
        ("l.x", "command line: l.x: l is a list of 2; name an item of it, l.0 to l.1"),
        ("l.2", "command line: l.2: l is a list of 2; name an item of it, l.0 to l.1"),
        ("l.-1.x", "command line: l.-1.x: l is a list of 2; name an item of it, l.0 to l.1"),
        ("e.0", "command line: e.0: e is a list of 0; replace it whole, e=[…]"),
    ],
)
def test_assign_refuses_paths_that_lead_nowhere(key: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tree().assign(key, 1)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[q", "command line: k: not YAML: expected ',' or ']', but got '<stream end>'"),
        (".inf", "command line: k: got .inf; numbers must be finite"),
        ("!x 1", "command line: k: the tag !x is not allowed; write plain YAML"),
        ("1\n--- 2", "command line: k: a second document starts here; keep one"),
        ("[" * 100, "command line: k: nested deeper than 50 levels"),
        ("a\udc80", "command line: k: not YAML: unprintable character U+DC80"),
        ("#" * (MAX_BYTES + 1), "command line: k: longer than 1,000,000 characters"),
    ],
)
def test_values_from_the_command_line_are_refused_alike(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_value(text, "k")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("é\n", '"é\\n"'),
        ("\udc80", '"\\udc80"'),
        ("\x7f\x1b[31m", '"\\u007f\\u001b[31m"'),
        (["q", 1e-5], '["q", 1e-05]'),
        ("x" * 100, '"' + "x" * 56 + "..."),
    ],
)
def test_show(value: Value, text: str) -> None:
    assert show(value) == text


def test_paths_stay_on_one_line() -> None:
    assert dotted(("a", 0, "b\nc")) == 'a.0."b\\nc"'


@pytest.mark.parametrize("text", ["5e-4", "0o17", "1.", "no", "1:30", "2020-01-01", "=", "null", "", "0x1f", "-.5E3"])
def test_render_quotes_text_that_looks_like_something_else(text: str) -> None:
    assert parse(render({"k": text}).encode(), "r.yaml").data == {"k": text}
    assert yaml.safe_load(render({"k": text})) == {"k": text}


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63) + 1, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
unsaved = settings(database=None, deadline=None, max_examples=300)


@unsaved
@given(st.dictionaries(texts, values, max_size=5))
def test_render_and_parse_are_inverse(data: dict[str, Value]) -> None:
    # As text: 0 and 0.0, 1 and true are equal to Python.
    assert repr(parse(render(data).encode(), "r.yaml").data) == repr(data)


yaml_like = st.text(st.sampled_from("ab01.eE+-_:,?[]{}&*!|>%@`'\"#~ \n\t\\x=<\r\0\ud800\u2028é"), max_size=60)


@unsaved
@given(st.binary(max_size=60) | yaml_like.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_parse_or_are_refused_with_a_line(raw: bytes) -> None:
    try:
        data = parse(raw, "r.yaml").data
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            place, _, line = problem.split(": ")[0].partition(":")
            assert place == "r.yaml"
            assert 1 <= int(line) <= len(raw) + 1
    else:
        assert parse(render(data).encode(), "r.yaml").data == data


@unsaved
@given(st.text(max_size=40) | yaml_like)
def test_any_value_parses_or_is_refused(text: str) -> None:
    try:
        value = parse_value(text, "k")
    except RecipeError as error:
        assert all(problem.startswith("command line: k: ") for problem in error.problems)
    else:
        assert not isinstance(value, float) or math.isfinite(value)

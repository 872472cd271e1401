"""Changes that bytes suffer: flips, cuts, insertions, copies, and, in text, values that no one expects."""

import random
import re

SPECIAL = [bytes([value]) for value in b":{}[]&*!|>%@`\"'#-?,~<=\\/\t\n\r \0\x1b\x7f"] + [
    b"\xff", b"\xc3", b"\xef\xbb\xbf", "\u2028".encode(), "\u202e".encode(), b"---\n", b"...\n", b"<<: ", b"? ",
]  # fmt: skip
VALUES = (
    "null", "~", "true", "no", "0", "-1", "1e400", ".nan", "-.inf", "0x1F", "0o17", "1_000", "9" * 400, "-0.0",
    "''", '"', "[]", "{}", "[[[]]]", "{a: {b: c}}", "[null]", "{null: null}", "{[]: 1}", "2026-11-21", "12:30:45",
    "!!python/object/apply:os.system [ls]", "!!binary aGk=", "!!set {a}", "!x y", "*a", "&a [*a]", "&a b", "|", ">-",
    "../../../etc/passwd", "/dev/null", "package:os", "hub:../x", "{row}", "%s%n", "$(ls)", "\\", "\u00e9" * 50,
    "x" * 5000,    '"\\ud800"', '"\\0"', "lora", "all-linear", "'*'", "auto",
)  # fmt: skip


def mutated(content: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """The content after one to four changes.

    Args:
        content: Anything.
        draw: Decides.
        other: Content of the same kind, to copy from.
    """
    for _ in range(draw.choice([1, 1, 2, 3, 4])):
        content = draw.choice([_flip, _cut, _insert, _copy, _graft, _number, _value, _value, _line])(
            content, draw, other
        )
    return content


def _place(content: bytes, draw: random.Random) -> int:
    """Mostly near the beginning: there are the headers."""
    return draw.randrange(min(len(content), draw.choice([64, 4096, 2**40])) + 1)


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = _place(content, draw)
    return start, min(len(content), start + draw.choice([1, 3, 20, 500]))


def _flip(content: bytes, draw: random.Random, other: bytes) -> bytes:
    at = _place(content, draw)
    return (
        content[:at] + bytes([value ^ (1 << draw.randrange(8)) for value in content[at : at + 1]]) + content[at + 1 :]
    )


def _cut(content: bytes, draw: random.Random, other: bytes) -> bytes:
    start, stop = _span(content, draw)
    return content[:start] if draw.random() < 0.2 else content[:start] + content[stop:]


def _insert(content: bytes, draw: random.Random, other: bytes) -> bytes:
    at = _place(content, draw)
    return content[:at] + draw.choice([*SPECIAL, draw.randbytes(4)]) * draw.choice([1, 1, 2, 300]) + content[at:]


def _copy(content: bytes, draw: random.Random, other: bytes) -> bytes:
    (start, stop), at = _span(content, draw), _place(content, draw)
    return content[:at] + content[start:stop] + content[at:]


def _graft(content: bytes, draw: random.Random, other: bytes) -> bytes:
    (start, stop), at = _span(other, draw), _place(content, draw)
    return content[:at] + other[start:stop] + content[at:]


def _number(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """One of the numbers in a header or a text is another."""
    found = [match for match in re.finditer(rb"\d+", content[:8192])]
    if not found:
        return content
    match = draw.choice(found)
    new = draw.choice([b"0", b"-1", b"7", b"999999999999", b"9" * 400, b"1e999", b"null", b"NaN"])
    return content[: match.start()] + new + content[match.end() :]


def _value(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """The value of a key is another."""
    found = [match for match in re.finditer(rb"(?<=: )[^,}\n]*", content[:65536])]
    if not found:
        return content
    match = draw.choice(found)
    return content[: match.start()] + draw.choice(VALUES).encode() + content[match.end() :]


def _line(content: bytes, draw: random.Random, other: bytes) -> bytes:
    """A line is gone, twice there, elsewhere, or further in or out."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    change = draw.randrange(5)
    if change == 0:
        del lines[at]
    elif change == 1:
        lines.insert(at, lines[at])
    elif change == 2:
        lines.insert(draw.randrange(len(lines)), lines.pop(at))
    elif change == 3:
        lines[at] = b"  " + lines[at]
    else:
        lines[at] = lines[at].removeprefix(b" ")
    return b"\n".join(lines)

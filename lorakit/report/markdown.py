"""A page as Markdown."""

import re
from collections.abc import Collection, Sequence

from lorakit.report.blocks import Block, Code, Examples, Page, Section, Table, Text

_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")
"""What starts markup in the middle of a line; nothing here is at the start of one."""


def markdown(page: Page) -> str:
    """The page; pictures are links into plots/."""
    title = f"# {escape(page.title)}\n\n{escape(page.subtitle)}\n"
    cards = "".join(f"- {escape(card.label)}: **{escape(card.value)}** {escape(card.note)}\n" for card in page.cards)
    return "\n".join([title, cards, *map(_section, page.sections)])


def escape(text: str) -> str:
    """Text that says in Markdown and in its tables what it says: no markup, no HTML, no second line."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", plain)


def _section(section: Section) -> str:
    blocks = "\n".join(map(block, section.blocks))
    if section.folded:
        return f"<details>\n<summary>{escape(section.title)}</summary>\n\n{blocks}\n</details>\n"
    return f"## {escape(section.title)}\n\n{blocks}"


def block(block: Block) -> str:
    """One block."""
    if isinstance(block, Text):
        return f"{escape(block.text)}\n"
    if isinstance(block, Table):
        return table(block.header, block.rows, "---:" if block.numbers else "---")
    if isinstance(block, Examples):
        return "".join(_example(number, example) for number, example in enumerate(block.examples, 1))
    if isinstance(block, Code):
        fence = "`" * (1 + max(2, *(len(run) for run in re.findall("`*", block.text))))
        return f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}\n"
    return "".join(f"![{escape(picture.alt)}](plots/{picture.name}.png)\n" for picture in block.pictures)


def _example(number: int, example: Sequence[tuple[str, str]]) -> str:
    lines = [f"   - {escape(label)}: {escape(text)}\n" for label, text in example[1:]]
    label, text = example[0]
    return f"{number}. {escape(label)}: {escape(text)}\n" + "".join(lines)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str = "---",
    strong: Collection[tuple[int, int]] = (),
) -> str:
    """A table.

    Args:
        header: Of the columns.
        rows: As many cells each.
        align: Of all columns but the first.
        strong: (row, column) of the cells in bold.
    """
    cells = [
        [f"**{escape(cell)}**" if (i, j) in strong else escape(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(rows)
    ]
    lines = [list(map(escape, header)), ["---", *[align] * (len(header) - 1)], *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)

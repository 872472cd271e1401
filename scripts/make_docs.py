"""Write docs/recipe.md and docs/recipe.schema.json from the recipe's own types, so that they cannot fall behind.

make docs
"""

import json
from pathlib import Path
from typing import Any

from lorakit.recipe import json_schema

DOCS = Path(__file__).resolve().parents[1] / "docs"
INTRO = """# Every key of a recipe

Written by `make docs` from the types that check recipes; `lorakit schema` prints the same as a JSON schema.
A key without a default is required. YAML is 1.2: `5e-4` is a number, `on` is a word. Overrides on the command line,
`lorakit train recipe.yaml method.rank=4 'task.limit={train: 2000}'`, pass through the same checks.
Patterns (in `targets`, `ranks`, `alphas`) are globs on the full module path, such as `*.v_proj`.
"""


def page(schema: dict[str, Any]) -> str:
    """The Markdown page."""
    parts = [INTRO, section("The recipe", schema, schema)]
    seen: list[str] = []
    for name in references(schema["properties"]):
        visit(name, schema, seen)
    for name in seen:
        parts.append(section(title(name, schema), schema["$defs"][name], schema))
    return "\n".join(parts)


def visit(name: str, schema: dict[str, Any], seen: list[str]) -> None:
    if name not in seen:
        seen.append(name)
        for inner in references(schema["$defs"][name].get("properties", {})):
            visit(inner, schema, seen)


def references(node: Any) -> list[str]:
    """Names of the sections that a part of the schema refers to, in order."""
    if isinstance(node, dict):
        own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        return own + [name for value in node.values() for name in references(value)]
    return [name for value in node for name in references(value)] if isinstance(node, list) else []


def title(name: str, schema: dict[str, Any]) -> str:
    constant = schema["$defs"][name].get("properties", {}).get("name", {}).get("const")
    return f"{name}: `name: {constant}`" if constant else name


def section(heading: str, part: dict[str, Any], schema: dict[str, Any]) -> str:
    """One section: its description and a table of its keys."""
    text = " ".join(part.get("description", "").split())
    lines = [f"## {heading}\n", f"{text}\n" if text and part is not schema else ""]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, node in part.get("properties", {}).items():
        default = "required" if key in part.get("required", []) else f"`{json.dumps(node.get('default'))}`"
        if "default" not in node and default != "required":
            default = "–"
        meaning = " ".join(node.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {values(node)} | {default} | {meaning} |")
    return "\n".join(line for line in lines if line) + "\n"


def values(node: dict[str, Any]) -> str:
    """What a key may hold, in a few words."""
    for kind in ("anyOf", "oneOf"):
        if kind in node:
            return " or ".join(dict.fromkeys(values(option) for option in node[kind]))
    if "$ref" in node:
        return str(node["$ref"]).rpartition("/")[2]
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    return plain(node)


def plain(node: dict[str, Any]) -> str:
    """A list, a mapping, or a scalar with its bounds."""
    kind = str(node.get("type", "any"))
    if kind == "array":
        return f"list of {values(node['items'])}" if "items" in node else "list"
    if kind == "object":
        inner = node.get("additionalProperties")
        return f"mapping to {values(inner)}" if isinstance(inner, dict) else "mapping"
    names = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = [f"{sign} {node[key]}" for key, sign in names.items() if key in node]
    return " ".join([kind, *bounds])


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    schema = json_schema()
    (DOCS / "recipe.schema.json").write_text(json.dumps(schema, indent=1) + "\n")
    (DOCS / "recipe.md").write_text(page(schema))


if __name__ == "__main__":
    main()

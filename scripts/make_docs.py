"""Write recipe.md, recipe.schema.json and architectures.md in docs from the code, so that they cannot fall behind.

make docs
"""

import json
from pathlib import Path
from typing import Any

from lorakit.arch import ARCHITECTURES, Architecture
from lorakit.recipe import json_schema

DOCS = Path(__file__).resolve().parents[1] / "docs"
INTRO = """# Every key of a recipe

Written by `make docs` from the types that check recipes; `lorakit schema` prints the same as a JSON schema.
A key without a default is required. YAML is 1.2: `5e-4` is a number, `on` is a word. Overrides on the command line,
`lorakit train recipe.yaml method.rank=4 'task.limit={train: 2000}'`, pass through the same checks.
Patterns (in `targets`, `ranks`, `alphas`) are globs on the full module path, such as `*.v_proj`.
"""

MODELS = """# Architectures

Written by `make docs` from `lorakit/arch.py`. `targets` take the paper's names: `q k v o` of the attention, `up`,
`gate` and `down` of the MLP, and `all-linear` for all of them. Where several stand in one fused module (marked *),
each is adapted by a low-rank pair of its own in its own rows, as loralib's `MergedLinear` does. Every row is tested
on a tiny model: the names, step 0, gradients, the merged model against the adapted one, PEFT's logits after `export
--to peft`, and a smoke run.

{table}
RoBERTa's row is PhoBERT's too (256 positions), Llama's is SmolLM's and SmolLM2's, DeBERTa-v2's is v3's.

**Mixtures of experts** (Qwen3-MoE, Mixtral). transformers keeps the experts' weights fused in 3-D tensors that no
module multiplies with. LoRA here does not adapt them: the default targets are the attention's, and `all-linear`,
`up`, `gate`, `down` or a pattern that names experts is refused by name, also where only some of the blocks have
experts, so that none stays frozen unnoticed.

**Anything else** of one stack of blocks works through `all-linear` and patterns on module paths, such as `targets:
["*.self_attn.q_proj", "*.v_proj"]`; `lorakit plan` shows what they hit and what stays frozen. A pattern that hits
nothing, or a matrix with a forward of its own (Gemma's scaled embeddings, OPT's positions), is refused.
Encoder-decoders (T5, BART) are not supported.
"""


def models() -> str:
    """The table of architectures; those that are alike share a line."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in ARCHITECTURES.values():
        alike.setdefault(cells(row), []).append(row.model_type)
    lines = [
        "| model type | kind | blocks | below a block | trained head | default targets |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {', '.join(names)} | {' | '.join(rest)} |" for rest, names in alike.items()]
    return MODELS.format(table="\n".join(lines) + "\n")


def cells(row: Architecture) -> tuple[str, ...]:
    """What the table says of an architecture beside its name."""
    fused: dict[str, list[str]] = {}
    for name, place in row.places.items():
        if not row.experts or name not in {"gate", "up", "down"}:
            fused.setdefault(f"`{place.path}`{'*' if place.rows else ''}", []).append(name)
    places = ", ".join(f"{' '.join(names)}: {path}" for path, names in fused.items())
    kind = "decoder" if row.decoder else "encoder"
    head = ", ".join(f"`{name}`" for name in row.head)
    return kind, f"`{row.blocks}`", places, head, " ".join(row.default_targets)


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
    (DOCS / "architectures.md").write_text(models())


if __name__ == "__main__":
    main()

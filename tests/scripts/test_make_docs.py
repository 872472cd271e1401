"""The generated documents are those of the code."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from lorakit.recipe import json_schema

ROOT = Path(__file__).resolve().parents[2]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_are_current() -> None:
    again = "run `make docs`"
    assert (ROOT / "docs" / "recipe.md").read_text() == script().page(json_schema()), again
    assert json.loads((ROOT / "docs" / "recipe.schema.json").read_text()) == json_schema(), again
    assert (ROOT / "docs" / "architectures.md").read_text() == script().models(), again


def test_every_key_of_every_section_is_in_the_page() -> None:
    page = script().page(json_schema())
    for section in json_schema()["$defs"].values():
        for key in section.get("properties", {}):
            assert f"| `{key}` |" in page

"""The page of the reported numbers is what the script writes, and has every number of the paper's tables."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from lorakit.recipe import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproduction.md"

# Written down apart from what the recipes are made of: bases, rows, and their cells in the order of the page.
TABLES = {
    "Table 2: FacebookAI/roberta-base": """
FT 87.6 94.8 90.2 63.6 92.8 91.9 78.7 91.2
BitFit 84.7 93.7 92.7° 62.0 91.8 84.0° 81.5 90.8
AdptD 87.1±0.0 94.2±0.1 88.5±1.1 60.8±0.4 93.1±0.1 90.2±0.0 71.5±2.7 89.7±0.3
AdptD 87.3±0.1 94.7±0.3 88.4±0.1 62.6±0.9 93.0±0.2 90.6±0.0 75.9±2.2 90.3±0.1
LoRA 87.5±0.3 95.1±0.2 89.7±0.7 63.4±1.2 93.3±0.3 90.8±0.1 86.6±0.7 91.5±0.2""",
    "Table 2: FacebookAI/roberta-large": """
FT 90.2 96.4 90.9 68.0 94.7 92.2 86.6 92.4
LoRA 90.6±0.2 96.2±0.5 90.9±1.2 68.2±1.9 94.9±0.3 91.6±0.1 87.4±2.5 92.6±0.2""",
    "Table 2, with a dagger: FacebookAI/roberta-large": """
AdptP 90.2±0.3 96.1±0.3 90.2±0.7 68.3±1.0 94.8±0.2 91.9±0.1 83.8±2.9 92.1±0.7
AdptP 90.5±0.3 96.6±0.2 89.7±1.2 67.8±2.5 94.8±0.3 91.7±0.2 80.1±2.9 91.9±0.4
AdptH 89.9±0.5 96.2±0.3 88.7±2.9 66.5±4.4 94.7±0.2 92.1±0.1 83.4±1.1 91.0±1.7
AdptH 90.3±0.3 96.3±0.5 87.7±1.7 66.3±2.0 94.7±0.2 91.5±0.1 72.9±2.9 91.5±0.5
LoRA 90.6±0.2 96.2±0.5 90.2±1.0 68.2±1.9 94.8±0.3 91.6±0.2 85.2±1.1 92.3±0.5""",
    "Table 2: microsoft/deberta-v2-xxlarge": """
FT 91.8 97.2 92.0 72.0 96.0 92.7 93.9 92.9
LoRA 91.9±0.2 96.9±0.2 92.6±0.6 72.4±1.1 96.0±0.1 92.9±0.1 94.9±0.4 93.0±0.2""",
    "Table 3: openai-community/gpt2-medium": """
FT 68.2 8.62 46.2 71.0 2.47
AdapterL 66.3 8.41 45.0 69.8 2.40
AdapterL 68.9 8.71 46.1 71.3 2.47
AdapterH 67.3±0.6 8.50 46.0 70.7 2.44
FT-Top2 68.1 8.59 46.0 70.8 2.41
PreLayer 69.7 8.81 46.1 71.4 2.49
LoRA 70.4±0.1 8.85 46.8 71.8 2.53""",
    "Table 3: openai-community/gpt2-large": """
FT 68.5 8.78 46.0 69.9 2.45
AdapterL 69.1±0.1 8.68 46.3 71.4 2.49
AdapterL 68.9±0.3 8.70 46.1 71.3 2.45
PreLayer 70.3 8.85 46.2 71.7 2.47
LoRA 70.4±0.1 8.89 46.8 72.0 2.47""",
    "Table 4: meta-llama/Llama-3.1-8B": """
FT 89.5° 73.8° 52.0° 28.0 44.5
BitFit 91.0° 71.3° 51.3° 27.4 43.5
PreEmbed 88.6° 63.1° 48.3° 24.2 40.5
PreLayer 89.5° 70.1° 50.8° 27.3 43.5
AdapterH 89.8° 71.9° 53.0° 28.9 44.8
AdapterH 91.5° 73.2° 53.2° 29.0 45.1
LoRA 91.7° 73.4° 53.8° 29.8 45.9
LoRA 91.6° 74.0° 53.4° 29.2 45.1""",
}


def script() -> Any:
    spec = importlib.util.spec_from_file_location("make_reproduction", ROOT / "scripts" / "make_reproduction.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    made = script()
    assert made.page(PAGE.read_text(), made.shipped()) == PAGE.read_text(), "run `make recipes`"


@pytest.mark.parametrize("title", TABLES)
def test_every_number_of_the_tables(title: str) -> None:
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| [A-Z]", line)]
    found = [" ".join([cells[0].replace("\\*", ""), *(cell.replace(" ", "") for cell in cells[3:])]) for cells in lines]
    assert sorted(found) == sorted(TABLES[title].strip().splitlines())


def test_every_recipe_with_a_number_has_a_command() -> None:
    text = PAGE.read_text()
    for file in (ROOT / "recipes").glob("*.yaml"):
        stem = file.stem
        if load(file).paper and "vsfc" not in stem:
            base, _, task = stem.removesuffix("_houlsby").rpartition("_")
            end = "_houlsby" if stem.endswith("_houlsby") else ""
            wanted = rf"recipes/({re.escape(stem)}|{re.escape(base)}_\{{[a-z0-9,]*\b{task}\b[a-z0-9,]*\}}{end})\.yaml"
            assert re.search(wanted, text), stem

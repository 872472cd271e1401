"""Write MNLI, QNLI and QQP in GLUE's official layout from files of {"0": {"text_a", "text_b", "label"}, ...}.

python scripts/glue_extra.py ../shared/data/glue_extra_10k /tmp/glue
lorakit train recipes/roberta_mnli.yaml task.path=/tmp/glue

Each has train.json and dev.json, both of rows from the official training set. MNLI's two official dev sets are both
written from dev.json, so that its mismatched one says nothing new.
"""

import argparse
import json
from pathlib import Path

from lorakit.tasks.glue_corpora import CORPORA

FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "mnli": {"train": ("train",), "dev": ("dev_matched", "dev_mismatched")},
    "qnli": {"train": ("train",), "dev": ("dev",)},
    "qqp": {"train": ("train",), "dev": ("dev",)},
}


def convert(source: Path, out: Path, subset: str) -> list[Path]:
    """Write the official files of a subset.

    Args:
        source: Holds the folders MNLI, QNLI and QQP.
        out: Gets a folder as the official zip has it; for `task.path`.
        subset: One of `FILES`.
    """
    corpus = CORPORA[subset]
    folder = out / corpus.folder
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for part, names in FILES[subset].items():
        rows = json.loads((source / corpus.folder / f"{part}.json").read_text(encoding="utf-8"))
        lines = ["\t".join(("index", *corpus.columns, corpus.label))]
        lines += ["\t".join((index, row["text_a"], row["text_b"], row["label"])) for index, row in rows.items()]
        for name in names:
            written.append(folder / f"{name}.tsv")
            written[-1].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return written


def main() -> None:
    """Convert what is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder that holds MNLI/, QNLI/ and QQP/")
    parser.add_argument("out", type=Path, help="for task.path")
    given = parser.parse_args()
    for subset in FILES:
        for file in convert(given.source, given.out, subset):
            print(file)


if __name__ == "__main__":
    main()

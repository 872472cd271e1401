"""The nine tasks of GLUE as published: their files, columns, classes, metrics and rows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """One GLUE task.

    Args:
        folder: In the official zip.
        columns: Of the text and, where there is one, its pair, in the official files.
        label: Column of the label there.
        labels: Names of the classes, in the order of the hub's ids.
        spelled: The same as the official files and submissions spell them.
        metrics: The paper's first.
        hub_columns: As `columns`, on the hub.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    spelled: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    hub_columns: tuple[str, ...] = ("sentence1", "sentence2")


_NLI = ("entailment", "not_entailment")
CORPORA = {
    "mnli": Corpus(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        hub_columns=("premise", "hypothesis"),
    ),
    "sst2": Corpus("SST-2", ("sentence",), "label", ("negative", "positive"), ("0", "1"), hub_columns=("sentence",)),
    "mrpc": Corpus(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        ("0", "1"),
        ("accuracy", "f1"),
    ),
    "cola": Corpus(
        "CoLA",
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        ("0", "1"),
        ("matthews",),
        hub_columns=("sentence",),
    ),
    "qnli": Corpus("QNLI", ("question", "sentence"), "label", _NLI, _NLI, hub_columns=("question", "sentence")),
    "qqp": Corpus(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        ("0", "1"),
        ("accuracy", "f1"),
        hub_columns=("question1", "question2"),
    ),
    "rte": Corpus("RTE", ("sentence1", "sentence2"), "label", _NLI, _NLI),
    "stsb": Corpus("STS-B", ("sentence1", "sentence2"), "score", ("score",), (), ("pearson", "spearman")),
    "wnli": Corpus("WNLI", ("sentence1", "sentence2"), "label", ("not_entailment", "entailment"), ("0", "1")),
}
OFFICIAL_ROWS = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "qqp": (363846, 40430, 390965),
    "mnli": (392702, 9815, 9796),
    "qnli": (104743, 5463, 5463),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
}
"""Of train, validation (MNLI: matched) and test."""

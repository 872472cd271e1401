"""`lorakit score wikisql`: the official metrics of predicted queries, from the official files."""

from dataclasses import replace

from lorakit.errors import DataError
from lorakit.scoring.base import Files
from lorakit.tasks.base import Scores
from lorakit.tasks.wikisql import judge
from lorakit.tasks.wikisql_files import read_predictions, read_questions


def score(files: Files) -> Scores:
    """Logical form, execution (with a database) and logical form in order.

    Args:
        files: Predictions: one per question, in their order, as the official script takes them ({"query": {sel, agg,
            conds}} or {"error": ...} per line), or as SQL text per line. References: official questions, such as
            dev.jsonl, whose tables (dev.tables.jsonl) lie beside them unless `tables` says otherwise.

    Raises:
        RecipeError: A subset is given.
        DataError: A file is missing or malformed, or there are more or fewer predictions than questions.
    """
    files.refuse("wikisql", "subset")
    tables = files.tables or files.references.parent / f"{files.references.stem}.tables.jsonl"
    if files.tables is None and not tables.is_file():
        raise DataError(f"{tables}: there is no such file; name the tables of these questions with --tables")
    questions = [question for question, _ in read_questions(files.references, tables)]
    predicted = read_predictions(files.predictions, questions)
    scores = judge(questions, predicted, files.db or "it needs the split's database (--db)")
    return replace(scores, rows=len(questions))

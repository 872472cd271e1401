"""`lorakit score samsum`: ROUGE of summaries against an official file."""

from lorakit.data.readers import read_json
from lorakit.data.rows import CompletionRow, Row
from lorakit.scoring.base import Files
from lorakit.scoring.outputs import read_texts, require_as_many
from lorakit.tasks.base import Scores
from lorakit.tasks.samsum import SAMSum, tidy


def score(files: Files) -> Scores:
    """ROUGE-1, -2, -L and -Lsum.

    Args:
        files: Predictions: one summary per line, in the order of the references. References: an official file, such as
            test.json.

    Raises:
        RecipeError: An option of another task is given.
        DataError: A file is missing or malformed, or there are more or fewer predictions than dialogues.
    """
    files.refuse("samsum", "subset", "tables", "db")
    summaries = [tidy(record.text("summary")) for record in read_json(files.references)]
    texts = read_texts(files.predictions)
    require_as_many(files.predictions, len(texts), files.references, len(summaries), "dialogues")
    rows: list[Row] = [CompletionRow(f"dialogue {n}", summary) for n, summary in enumerate(summaries)]
    return SAMSum().score(rows, texts)

"""The tasks: each class reads its official files and scores predictions with its official metrics."""

from lorakit.tasks.base import Task
from lorakit.tasks.custom import Custom
from lorakit.tasks.e2e import E2E
from lorakit.tasks.glue import Glue
from lorakit.tasks.imported import Imported
from lorakit.tasks.samsum import SAMSum
from lorakit.tasks.vsfc import Vsfc
from lorakit.tasks.wikisql import WikiSQL

TASKS: dict[str, type[Task]] = {
    "glue": Glue,
    "e2e": E2E,
    "samsum": SAMSum,
    "wikisql": WikiSQL,
    "vsfc": Vsfc,
    "custom": Custom,
    "imported": Imported,
}
"""`task.name` → class."""

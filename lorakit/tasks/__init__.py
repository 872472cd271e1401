"""The tasks: each class reads its official files and scores predictions with its official metrics."""

from lorakit.tasks.base import Task
from lorakit.tasks.custom import Custom
from lorakit.tasks.e2e import E2E
from lorakit.tasks.glue import Glue
from lorakit.tasks.vsfc import Vsfc

TASKS: dict[str, type[Task]] = {"glue": Glue, "e2e": E2E, "vsfc": Vsfc, "custom": Custom}
"""`task.name` → class."""

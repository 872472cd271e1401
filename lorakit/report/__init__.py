"""What a finished run tells: report.json for programs, report.md and report.html for people, pictures in plots/."""

from lorakit.report.facts import metric_rows, note_lines, paper_line, shown, shown_spread, summary_rows
from lorakit.report.markdown import table
from lorakit.report.write import write_pages, write_report

__all__ = [
    "metric_rows",
    "note_lines",
    "paper_line",
    "shown",
    "shown_spread",
    "summary_rows",
    "table",
    "write_pages",
    "write_report",
]

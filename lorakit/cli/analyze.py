"""The command that looks into adapters: analyze."""

from pathlib import Path
from typing import Annotated

import typer

from lorakit.cli.shared import Json, app, progress_for
from lorakit.console import print_table


@app.command()
def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN]...", help="Runs of one base.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Where to; default: the first RUN's analysis/.")] = None,
    layer: Annotated[int | None, typer.Option(help="Whose φ is drawn; default: the middle one.")] = None,
    json_: Json = False,
) -> None:
    """What adapters have learned: ΔW's spectrum, what of W it amplifies, and how far runs agree (the paper's §7)."""
    import json

    from lorakit.analysis import MARKDOWN, check_place, write
    from lorakit.analysis import analyze as look
    from lorakit.analysis.tables import overlaps, spectra, suggestion, warnings
    from lorakit.runtime import json_ready

    folder = out or runs[0] / "analysis"
    check_place(folder)
    found = look(runs, progress_for(quiet=json_), layer)
    write(found, folder)
    if json_:
        print(json.dumps(json_ready(found.as_dict()), ensure_ascii=False))
        return
    for run in found.runs:
        header, rows = spectra(run)
        print_table([run.label, *header[1:]], rows)
        print(suggestion(run))
    for pair in found.pairs:
        header, rows = overlaps(pair)
        print_table([f"{pair.one} and {pair.other}", *header[1:]], rows)
    for note in warnings(found):
        print(f"note: {note}")
    print(f"written: {folder / MARKDOWN}")

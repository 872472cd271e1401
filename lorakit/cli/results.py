"""Commands that make something of a run, or of files: merge, export, report, score."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.shared import Checkpoint, Json, RunArgument, app, progress_for
from lorakit.console import print_table
from lorakit.errors import RecipeError


@app.command()
def merge(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="Default: that of the base's files.")
    ] = None,
    checkpoint: Checkpoint = None,
    verify: Annotated[
        Literal["none", "tensors", "logits"], typer.Option(help="How the result is proved against the adapter.")
    ] = "logits",
    onto: Annotated[
        Literal["trained", "original"],
        typer.Option(help="Of a base in 4 bits: as those left it, or as its files have it, which loses fidelity."),
    ] = "trained",
) -> None:
    """Deployable weights for transformers: streamed, reloaded from disk, proved equal to the adapted model."""
    from lorakit.checkpoint import open_run
    from lorakit.merge import merge as write_merged
    from lorakit.session import probe_batches

    progress = progress_for()
    opened = open_run(run, checkpoint, skeleton=True)
    opened.onto = onto
    for doubt in opened.doubts:
        progress.say(f"warning: {doubt}")
    batches = probe_batches(opened) if verify == "logits" else []
    with progress.bar("merge", 100, "%") as bar:
        done = [0]

        def advance(written: int, total: int) -> None:
            percent = 100 * written // max(1, total)
            bar.advance(percent - done[0])
            done[0] = percent

        report = write_merged(opened, out, dtype, verify, batches, advance)
    print_table(["merged", str(out)], report.rows())


@app.command()
def export(
    run: RunArgument,
    to: Annotated[
        str, typer.Option(help="The format: peft, portable (PEFT, vLLM and llama.cpp), gguf (llama.cpp), loralib.")
    ],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    checkpoint: Checkpoint = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut every update to this rank first; what that loses is reported.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="For the model card: a licence's name on the hub, such as apache-2.0.")
    ] = None,
) -> None:
    """The adapter in another tool's format, loaded back and compared before it is called done."""
    from lorakit.checkpoint import open_run
    from lorakit.export import export as write_export

    opened = open_run(run, checkpoint, skeleton=True)
    report = write_export(opened, to, out, rank, license)
    print_table(["exported", str(out)], report.rows())


@app.command()
def report(run: RunArgument) -> None:
    """Write report.md, report.html and the plots again, from the files of a finished run."""
    from lorakit.report import write_pages

    write_pages(run)
    print(f"written: {run / 'report.html'}")


@app.command()
def score(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Whose metrics: glue, e2e, wikisql, samsum.")],
    *,
    predictions: Annotated[Path, typer.Option(help="What was said: lines, or the task's own format.")],
    references: Annotated[Path, typer.Option(help="The official file to compare it with.")],
    subset: Annotated[str | None, typer.Option(help="Of glue: mnli, sst2, mrpc, cola, …")] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Of wikisql: the tables; default: NAME.tables.jsonl beside the references.")
    ] = None,
    db: Annotated[Path | None, typer.Option(help="Of wikisql: the database, for execution accuracy.")] = None,
    json_: Json = False,
) -> None:
    """The official metrics of anybody's predictions, from files alone."""
    import json

    from lorakit.report import metric_rows
    from lorakit.runtime import json_ready
    from lorakit.scoring import SCORERS
    from lorakit.scoring.base import Files

    if task not in SCORERS:
        raise RecipeError(f"{task}: there is nothing to score such a task; there are {', '.join(SCORERS)}")
    with progress_for(quiet=json_ or not sys.stdout.isatty()).bar("score", 1, "task") as bar:
        found = SCORERS[task](Files(predictions, references, subset, tables, db))
        bar.advance()
    if json_:
        said = {"task": task, "subset": subset, "metrics": found.values, "notes": found.notes, "rows": found.rows}
        print(json.dumps(json_ready(said)))
        return
    print_table(*metric_rows({subset or task: found.values}))
    for note in found.notes:
        print(note)
    print(f"scored: {found.rows} predictions")

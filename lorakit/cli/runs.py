"""Commands that run a model: train, eval, predict."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorakit.cli.shared import Checkpoint, Json, Overrides, RecipeArgument, RunArgument, Split, app, progress_for
from lorakit.console import print_table
from lorakit.errors import RecipeError
from lorakit.launch import launch, launched, lorakit_command

if TYPE_CHECKING:
    from lorakit.recipe import Recipe


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Share the work among N processes: one per GPU, or on a CPU.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny random model and made-up rows, two steps: seconds, offline.")
    ] = False,
) -> None:
    """Run a recipe into a run directory."""
    from lorakit.recipe import load

    loaded = load(recipe, overrides or [])
    several = launched() or (processes or 1) > 1
    if smoke:
        if several:
            raise RecipeError("--smoke runs in one process")
        _smoke(loaded, out)
        return
    if processes is not None and launched():
        raise RecipeError("--processes: this was started by a launcher already (WORLD_SIZE is set); use one of the two")
    if processes is not None and several:
        options = [*(["--out", str(out)] if out else []), *["--resume"] * resume, *["--overwrite"] * overwrite]
        launch(lorakit_command(["train", *options, "--", str(recipe), *(overrides or [])]), processes)
        return
    from lorakit.training.run import train as run_recipe
    from lorakit.world import leave

    directory = out or Path("runs") / loaded.name
    run = run_recipe(loaded, directory, progress_for(), resume=resume, overwrite=overwrite)
    if run.main:
        _show_report(directory)
    leave(run.world)


def _smoke(recipe: "Recipe", out: Path | None) -> None:
    """Train, evaluate, save and merge in a directory of its own, kept only where the person names one."""
    from lorakit.smoke import smoke

    with tempfile.TemporaryDirectory(prefix="lorakit-smoke-") as scratch:
        report = smoke(recipe, Path(scratch), out or Path(scratch) / "run", progress_for())
    merged = not any(method.unmergeable() for method in recipe.method)
    end = "saved, merged and verified" if merged else "saved (what this method trains cannot be merged)"
    print(f"smoke: {recipe.name}: trained {report['steps']} steps, evaluated, {end}")


def _show_report(run: Path) -> None:
    import json

    from lorakit.report import metric_rows, note_lines, paper_line, summary_rows

    report = json.loads((run / "report.json").read_text())
    print_table(*metric_rows(report["metrics"]))
    print_table(["run", str(run)], summary_rows(report))
    for line in (*note_lines(report), paper_line(report)):
        if line:
            print(line)
    print(f"report: {run / 'report.html'}")


@app.command("eval")
def evaluate(
    run: RunArgument,
    split: Split = "validation",
    checkpoint: Checkpoint = None,
    merged: Annotated[Path | None, typer.Option(help="Evaluate this merged directory instead.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the bare base instead.")] = False,
    json_: Json = False,
) -> None:
    """The task's metrics for the adapter, a merged directory, or the bare base."""
    import json

    from lorakit.records import write_records
    from lorakit.report import metric_rows
    from lorakit.runtime import json_ready
    from lorakit.session import open_session

    if merged and base:
        raise RecipeError("--merged and --base exclude each other")
    progress = progress_for(quiet=json_)
    session = open_session(run, checkpoint, base_only=base, merged=merged)
    for doubt in session.opened.doubts:
        progress.say(f"warning: {doubt}")
    found = session.evaluate(session.read(split, progress), progress)
    kind = "base-" if base else "merged-" if merged else f"{checkpoint}-" if checkpoint else ""
    file = run / "predictions" / f"{kind}{split}.jsonl"
    write_records(file, found.records)
    if json_:
        print(json.dumps(json_ready({"split": split, "metrics": found.metrics, "notes": found.notes})))
        return
    print_table(*metric_rows({split: found.metrics}))
    for note in found.notes:
        print(note)
    print(f"predictions: {file}")


@app.command()
def predict(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One or several run directories.")],
    input_: Annotated[
        str | None, typer.Option("--input", help="JSONL of the task's fields, or plain lines; - for standard input.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="A split of the task's own data: test, validation, diagnostic, …")
    ] = None,
    checkpoint: Checkpoint = None,
    out: Annotated[Path | None, typer.Option(help="File (one run) or directory; default: standard output.")] = None,
    fill_wnli: Annotated[
        bool, typer.Option("--fill-wnli", help="GLUE: write WNLI.tsv with the majority class if no run predicts it.")
    ] = False,
) -> None:
    """Predictions; for GLUE's test split the submission files, zipped when all eleven are there."""
    from lorakit.predict import predict_input, predict_split

    if (input_ is None) == (split is None):
        raise RecipeError("give either --input or --split")
    if fill_wnli and (split != "test" or out is None):
        raise RecipeError("--fill-wnli completes GLUE's submission: it goes with --split test --out DIR")
    progress = progress_for(quiet=out is None)
    written: list[Path] = []
    if split is not None:
        for file in predict_split(runs, checkpoint, split, out, progress):
            print(f"written: {file}")
            written.append(file)
        _show_submission(written, fill_wnli)
        return
    assert input_ is not None
    for run in runs:
        for file in predict_input(run, checkpoint, input_, out, several=len(runs) > 1, progress=progress):
            print(f"written: {file}")


def _show_submission(written: Sequence[Path], fill_wnli: bool) -> None:
    """Which of the eleven files of a submission to GLUE are there, and the zip once all are; else nothing."""
    from lorakit.tasks import glue_submission

    if not written or written[0].name not in glue_submission.TEST_SETS:
        return
    folder = written[0].parent
    if fill_wnli and (filled := glue_submission.fill_wnli(folder)):
        print(f"written: {filled}: the majority class in all rows, from no model")
    problems = glue_submission.problems_of(folder)
    print_table(["file", "state"], [(name, problem or "complete") for name, problem in problems.items()])
    if lacking := sum(map(bool, problems.values())):
        print(f"no submission yet: {lacking} of the {len(problems)} files are not complete")
    else:
        print(f"written: {glue_submission.write_archive(folder)}: for gluebenchmark.com/submit")

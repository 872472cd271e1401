"""The command line: thin commands, and the only place that prints errors and exits.

Heavy imports stand inside the commands, so that `lorakit --help` answers at once.
"""

import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lorakit import __version__
from lorakit.console import print_errors, print_table
from lorakit.errors import LorakitError, RecipeError

if TYPE_CHECKING:
    from lorakit.progress import Progress
    from lorakit.recipe import Recipe

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that train has written.")]
Checkpoint = Annotated[
    str | None, typer.Option(metavar="step-N", help="Use this checkpoint instead of the published adapter.")
]
Split = Annotated[str, typer.Option(help="train, validation, validation_mismatched, test, test_mismatched.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"lorakit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune language models with LoRA from YAML recipes."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.lr=1e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny random model and made-up rows, two steps: seconds, offline.")
    ] = False,
) -> None:
    """Run a recipe into a run directory."""
    from lorakit.recipe import load

    loaded = load(recipe, overrides or [])
    if smoke:
        _smoke(loaded, out)
        return
    from lorakit.training.run import train as run_recipe

    directory = out or Path("runs") / loaded.name
    run = run_recipe(loaded, directory, _progress(), resume=resume, overwrite=overwrite)
    if run.main:
        _show_report(directory)


def _smoke(recipe: "Recipe", out: Path | None) -> None:
    """Train, evaluate, save and merge in a directory of its own, kept only where the person names one."""
    from lorakit.smoke import smoke

    with tempfile.TemporaryDirectory(prefix="lorakit-smoke-") as scratch:
        report = smoke(recipe, Path(scratch), out or Path(scratch) / "run", _progress())
    print(f"smoke: {recipe.name}: trained {report['steps']} steps, evaluated, saved, merged and verified")


@app.command("eval")
def evaluate(
    run: RunArgument,
    split: Split = "validation",
    checkpoint: Checkpoint = None,
    merged: Annotated[Path | None, typer.Option(help="Evaluate this merged directory instead.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the bare base instead.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """The task's metrics for the adapter, a merged directory, or the bare base."""
    import json

    from lorakit.evaluate import write_records
    from lorakit.report import metric_rows
    from lorakit.runtime import json_ready
    from lorakit.session import open_session

    if merged and base:
        raise RecipeError("--merged and --base exclude each other")
    progress = _progress(quiet=json_)
    session = open_session(run, checkpoint, base_only=base, merged=merged)
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
    progress = _progress(quiet=out is None)
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
) -> None:
    """Deployable weights for transformers: streamed, reloaded from disk, proved equal to the adapted model."""
    from lorakit.checkpoint import open_run
    from lorakit.merge import merge as write_merged
    from lorakit.session import probe_batches

    progress = _progress()
    opened = open_run(run, checkpoint, skeleton=True)
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
    to: Annotated[str, typer.Option(help="The format: peft.")],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    checkpoint: Checkpoint = None,
) -> None:
    """The adapter in another tool's format, loaded back and compared before it is called done."""
    from lorakit.checkpoint import open_run
    from lorakit.export import export as write_export

    opened = open_run(run, checkpoint, skeleton=True)
    report = write_export(opened, to, out)
    print_table(["exported", str(out)], report.rows())


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. train.lr=1e-4")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to plan for, e.g. 24GiB; default: what is free here.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Device to plan for; default: that of this machine.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train 20 steps in a temporary run, and tell time and memory.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """What a recipe will do, before anything runs: targets, parameters, rows, steps, tokens, memory."""
    import json

    from lorakit.errors import DoesNotFit
    from lorakit.plan import make_plan, this_machine
    from lorakit.plan_view import as_json, measured_rows, parse_size, refusals, sentences, tables
    from lorakit.recipe import load
    from lorakit.runtime import json_ready

    loaded = load(recipe, overrides or [])
    machine = this_machine(None if device is None else device == "cuda", None if memory is None else parse_size(memory))
    progress = _progress(quiet=json_)
    made = make_plan(loaded, machine, progress)
    if not json_:
        for header, rows in tables(made):
            print_table(header, rows)
            print()
        for sentence in sentences(made):
            print(sentence)
    probe = None
    if measure and made.fits:
        from lorakit.measure import measure as run_probe

        probe = run_probe(made, progress)
        if not json_:
            print()
            print_table(*measured_rows(probe))
    if json_:
        print(json.dumps(json_ready(as_json(made, probe))))
    if problems := refusals(made):
        raise DoesNotFit(*problems)


@app.command()
def report(run: RunArgument) -> None:
    """Write report.md, report.html and the plots again, from the files of a finished run."""
    from lorakit.report import write_pages

    write_pages(run)
    print(f"written: {run / 'report.html'}")


@app.command()
def init(
    data: Annotated[
        Path | None, typer.Option(help="A file of rows: .csv, .tsv, .json, .jsonl, .parquet; or a task's folder.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="ID", help="The base model; default: a small one that fits.")
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="NAME", help="Your own rows (custom), or a task such as glue.")
    ] = "custom",
    kind: Annotated[
        Literal["classification", "regression", "completion", "chat"] | None,
        typer.Option(help="What the rows are; default: as the file looks."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; - prints it; default NAME.yaml.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented recipe for a data file, with the reason beside each value."""
    from shlex import quote

    from lorakit.scaffold.draft import check, draft, save

    drafted = draft(data, base, task, kind, _progress(quiet=out == Path("-")))
    if out == Path("-"):
        check(drafted, f"{drafted.name}.yaml")
        print(drafted.text, end="")
        return
    file = out or Path(f"{drafted.name}.yaml")
    save(drafted, file, overwrite)
    if drafted.columns:
        print_table(drafted.columns[0], drafted.columns[1:])
    for note in drafted.notes:
        print(f"note: {note}")
    print(f"written: {file}; next:")
    for command in ("lorakit plan {}", "lorakit train {} --smoke", "lorakit train {}"):
        print("  " + command.format(quote(str(file))))


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
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """The official metrics of anybody's predictions, from files alone."""
    import json

    from lorakit.report import metric_rows
    from lorakit.runtime import json_ready
    from lorakit.scoring import SCORERS
    from lorakit.scoring.base import Files

    if task not in SCORERS:
        raise RecipeError(f"{task}: there is nothing to score such a task; there are {', '.join(SCORERS)}")
    with _progress(quiet=json_ or not sys.stdout.isatty()).bar("score", 1, "task") as bar:
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


@app.command()
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    import json

    from lorakit.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))


def _progress(quiet: bool = False) -> "Progress":
    import os

    from lorakit.progress import Silent, for_terminal

    return Silent() if quiet else for_terminal(int(os.environ.get("RANK", "0")) == 0)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit 0, 1 (the run failed), 2 (the recipe or an argument is wrong), or 128 + signal."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        app([word for word in given if word != "--debug"], prog_name="lorakit", standalone_mode=True)
    except LorakitError as error:
        if debug:
            traceback.print_exc()
        print_errors(error.problems, error.prefix)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug else "; --debug shows where"
        print_errors((f"unexpected {type(error).__name__}: {error}{hint}",), LorakitError.prefix)
        sys.exit(1)

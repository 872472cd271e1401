"""Commands about recipes: plan, init, schema."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lorakit.cli.shared import Overrides, RecipeArgument, app, progress_for
from lorakit.console import print_table


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
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
    from lorakit.recipe import load

    loaded = load(recipe, overrides or [])
    # Behind a recipe's errors, which nobody should have to wait for.
    from lorakit.plan import make_plan, this_machine
    from lorakit.plan_view import as_json, measured_rows, parse_size, refusals, sentences, tables
    from lorakit.runtime import json_ready

    machine = this_machine(None if device is None else device == "cuda", None if memory is None else parse_size(memory))
    progress = progress_for(quiet=json_)
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

    drafted = draft(data, base, task, kind, progress_for(quiet=out == Path("-")))
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
def schema() -> None:
    """The JSON schema of recipes, for editors."""
    import json

    from lorakit.recipe import json_schema

    print(json.dumps(json_schema(), indent=1))

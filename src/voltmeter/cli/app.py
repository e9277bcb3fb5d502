"""The commands, and what their flags are by default.

What a flag takes stands in ``flags``; what a command does in the module of its name, imported when it is asked for.
"""

import typer

from voltmeter.cli import flags
from voltmeter.cli.endings import command

app = typer.Typer(
    name="voltmeter",
    help="Measure the circuits inside neural networks.",
    epilog=(
        "MODEL is a Hugging Face id or a local directory, demo (a small model that ships with voltmeter), "
        "hooked:DIR (weights in HookedTransformer's format), rasp:NAME (a compiled program), "
        "katago:FILE, modular:DIR and decision:DIR (published models of these kinds), "
        "or py:package.module:factory."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _voltmeter(version: flags.Version = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"voltmeter {installed('voltmeter')}")
        raise typer.Exit


@app.command()
@command
def wire(
    model: flags.Model,
    node: flags.Node = None,
    split: flags.Split = None,
    merge: flags.Merge = None,
    declare: flags.Declare = None,
    inputs: flags.Inputs = None,
    every: flags.EveryName = False,
    dtype: flags.Dtype = None,
    as_json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Show what a model is made of.

    Its streams, writers, readers and edges, read off one traced run and verified.
    """
    from voltmeter.cli import wire as this

    this.wire(
        model,
        this.View(node, tuple(split or ()), tuple(merge or ()), tuple(declare or ()), inputs, every),
        dtype,
        as_json,
    )


@app.command()
@command
def discover(
    model: flags.Model,
    task: flags.Task,
    method: flags.Method = "edge-sp",
    fill: flags.Fill = "resample",
    edges: flags.Edges = None,
    faithful: flags.Faithful = None,
    signed: flags.Signed = False,
    metric: flags.Metric = None,
    seed: flags.Seed = 0,
    out: flags.Out = None,
    steps: flags.Steps = None,
    settings: flags.Settings = None,
    declare: flags.Declare = None,
    batch_size: flags.BatchSize = 32,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    drop_misaligned: flags.DropMisaligned = False,
    resume: flags.Resume = False,
    as_json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Find the circuit that a task needs.

    Scores every edge, keeps the best, measures on held-out pairs how faithful the circuit is, and writes a
    directory with all of it. Stopped with Ctrl-C, it goes on where it was with --resume.
    """
    from voltmeter.cli import discover as this
    from voltmeter.cli.asked import Asked

    asked = Asked(
        model=model,
        task=task,
        method=method,
        fill=fill,
        edges=edges,
        faithful=faithful,
        signed=signed,
        metric=metric,
        seed=seed,
        out=out,
        steps=steps,
        set=tuple(settings or ()),
        declare=tuple(declare or ()),
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        drop_misaligned=drop_misaligned,
        resume=resume,
    )
    this.discover_and_show(asked, as_json)


@app.command()
@command
def demo(out: flags.Out = None, as_json: flags.Json = False, debug: flags.Debug = False) -> None:
    """Find a circuit here and now, offline.

    The induction circuit of the small trained model that ships with voltmeter, in under a minute.
    """
    from voltmeter.cli import demo as this

    this.demo(out, as_json)


@app.command()
@command
def show(run: flags.Run, every: flags.EveryEdge = False, debug: flags.Debug = False) -> None:
    """Show a run that was written before."""
    from voltmeter.cli import show as this

    this.show(run, every)


@app.command()
@command
def check(
    run: flags.CheckedRun = None,
    circuit: flags.CircuitFile = None,
    model: flags.OfModel = None,
    task: flags.OfTask = None,
    fill: flags.OfFill = None,
    metric: flags.Metric = None,
    split: flags.Split = None,
    merge: flags.Merge = None,
    declare: flags.Declare = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    drop_misaligned: flags.DropMisaligned = False,
    only: flags.Only = None,
    budget: flags.Budget = 60.0,
    threshold: flags.Threshold = 0.9,
    seed: flags.CheckSeed = 0,
    out: flags.FindingsOut = None,
    as_json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Tell whether a circuit is what it is taken for.

    Makes every check that there is (see: voltmeter checks) on held-out pairs, of a run, or of anyone's circuit with
    --circuit FILE --model MODEL --task TASK. Exits with 1 if a check fails.
    """
    from voltmeter.cli import check as this

    asked = this.Asked(
        run=run,
        circuit=circuit,
        model=model,
        task=task,
        fill=fill,
        metric=metric,
        split=tuple(split or ()),
        merge=tuple(merge or ()),
        declare=tuple(declare or ()),
        dtype=dtype,
        device=device,
        drop_misaligned=drop_misaligned,
        only=None if only is None else tuple(name.strip() for name in only.split(",") if name.strip()),
        budget=budget,
        threshold=threshold,
        seed=seed,
        out=out,
    )
    this.check_and_show(asked, as_json)


@app.command()
@command
def truth(
    model: flags.CompiledModel,
    fill: flags.TruthFill,
    positions: flags.Positions = "paired",
    tolerance: flags.Tolerance = 1e-6,
    output: flags.TruthOutput = "raw",
    seed: flags.TruthSeed = 0,
    limit: flags.Limit = 100_000,
    save: flags.Save = None,
    verify: flags.Verify = False,
    as_json: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Tell which edges a compiled model needs.

    Cuts every edge, searches all circuits, and says of each edge that the program uses and that is not necessary, why.
    """
    from voltmeter.cli import truth as this

    this.show_truth(this.Asked(model, fill, positions, tolerance, output, seed, limit, save, verify), as_json)


@app.command()
@command
def programs(as_json: flags.Json = False, debug: flags.Debug = False) -> None:
    """List the programs that can be compiled."""
    from voltmeter.cli import truth as this

    this.show_programs(as_json)


@app.command()
@command
def tasks() -> None:
    """List the tasks that come with voltmeter."""
    from voltmeter.cli import lists

    lists.tasks()


@app.command()
@command
def methods() -> None:
    """List the methods that score edges, and their settings."""
    from voltmeter.cli import lists

    lists.methods()


@app.command()
@command
def checks() -> None:
    """List the checks that circuits go through, and what each asks."""
    from voltmeter.cli import lists

    lists.checks()


def main() -> None:
    """The ``voltmeter`` command."""
    import io
    import sys

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale without arrows gets question marks
    app()

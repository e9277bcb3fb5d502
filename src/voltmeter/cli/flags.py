"""The flags of the commands: what each is called, takes, and says of itself with ``--help``."""

from pathlib import Path
from typing import Annotated

import typer

# of several commands

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face id or directory, demo, hooked:DIR, rasp:NAME, katago:FILE, ... (all: voltmeter --help).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, all else to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, print the traceback too.")]
Dtype = Annotated[str | None, typer.Option(metavar="TYPE", help="float32, float64 or bfloat16.")]
Declare = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="Take this module as one opaque component. Repeatable."),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the run goes.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)]

# of wire

Node = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only this writer, reader or edge, with what it is joined to.")
]
Split = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PARTS", help="Divide a component: input=parts, m0=units, a0=heads. Repeatable."),
]
Merge = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Make a component whole again: a0. Repeatable.")]
Inputs = Annotated[
    Path | None,
    typer.Option("--input", metavar="FILE", help="Example inputs: a .safetensors file of the model's arguments."),
]
EveryName = Annotated[bool, typer.Option("--all", help="Print every name.")]

# of discover

Task = Annotated[str, typer.Option(metavar="TASK", help="A built-in task (see: voltmeter tasks) or a file of pairs.")]
Method = Annotated[str, typer.Option(metavar="NAME", help="See: voltmeter methods.")]
Fill = Annotated[
    str, typer.Option(metavar="NAME", help="What a cut edge carries: zero, mean, mean-position or resample.")
]
Edges = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="A circuit of at most N edges.", show_default=False)
]
Faithful = Annotated[
    float | None,
    typer.Option(metavar="T", help="The smallest circuit that is faithful at T; 0.9 if --edges is not given."),
]
Signed = Annotated[bool, typer.Option("--signed", help="Rank edges by score, not by |score|.")]
Metric = Annotated[str | None, typer.Option(metavar="NAME", help="logit-difference, log-probability, accuracy or kl.")]
Seed = Annotated[int, typer.Option(metavar="S", min=0, max=2**32 - 1, help="Of the task and the method.")]
Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="Steps of the method.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method. Repeatable."),
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Pairs to a step.")]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1; a GPU if there is one.")]
DropMisaligned = Annotated[
    bool, typer.Option("--drop-misaligned", help="Leave out pairs that do not line up token by token.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with this run where it was stopped.")]

# of show

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")]
EveryEdge = Annotated[bool, typer.Option("--all", help="Print every edge.")]

# of truth

CompiledModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="rasp:NAME, rasp:random:SEED[:SIZE] or rasp:DIRECTORY.")
]
TruthFill = Annotated[
    str, typer.Option("--fill", metavar="NAME", help="What a cut edge carries: zero, mean, mean-position or resample.")
]
Positions = Annotated[
    str, typer.Option(metavar="WHICH", help="Of the corrupted run (resample): paired, or random, shuffled too.")
]
Tolerance = Annotated[float, typer.Option(metavar="T", help="The output changed where it moved by more.")]
TruthOutput = Annotated[
    str, typer.Option("--output", metavar="KIND", help="raw, the numbers; decoded, the values they stand for.")
]
TruthSeed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Of the pairing of inputs.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, help="States after which the search for circuits stops.")]
Save = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate there.")]
Verify = Annotated[bool, typer.Option("--verify", help="Check the certificate from scratch, with the slow engine.")]

# of check

CheckedRun = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="The directory of a run.", show_default=False)]
CircuitFile = Annotated[
    Path | None,
    typer.Option(
        "--circuit", metavar="FILE", help="Anyone's circuit: our own or EAP-IG's JSON, a list of edges, or of heads."
    ),
]
OfModel = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="The model of FILE; of RUN: where it is now.")
]
OfTask = Annotated[
    str | None, typer.Option("--task", metavar="TASK", help="The task of FILE; of RUN: where its file is now.")
]
OfFill = Annotated[
    str | None,
    typer.Option("--fill", metavar="NAME", help="Of FILE: zero, mean, mean-position or resample (if it names none)."),
]
Only = Annotated[str | None, typer.Option(metavar="A,B", help="Only these checks. See: voltmeter checks.")]
Budget = Annotated[float, typer.Option(metavar="SECONDS", help="Time for all checks together; 0 for no limit.")]
Threshold = Annotated[float, typer.Option(metavar="T", help='The T of "faithful at T".')]
CheckSeed = Annotated[
    int, typer.Option("--seed", metavar="S", min=0, max=2**32 - 1, help="Of what is drawn; of FILE, of the task too.")
]
FindingsOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where findings go; of a run, RUN-findings by default.")
]

"""What a circuit puts out, by name, in rows and in a picture."""

from typing import Any

import torch
from torch import Tensor

from voltmeter.check.board import board_map, point_name
from voltmeter.check.finding import Picture
from voltmeter.check.look import CIRCUIT, FULL, Look, mean, most_frequent
from voltmeter.check.rules import bits

SHOWN = 12  # outputs in a picture
LISTED = 8  # outputs, and features, in the details


def name_of(look: Look, label: int) -> str:
    """As people call an output: as ``task.how["names"]`` does ({"361": " he"}), else by its number."""
    readout = look.seen.readout
    number = look.seen.output(label)
    names = look.case.task.how.get("names", {})
    if str(number) in names:
        return f"'{names[str(number)]}'"
    if readout.board is not None:
        return point_name(label, readout.board)
    if readout.kind == "numbers":
        ends = (-torch.inf, *look.seen.ranges, torch.inf)
        return f"{ends[label]:.3g} to {ends[label + 1]:.3g}"
    return f"{'token' if look.features.tokens else 'class'} {number}"


def details(look: Look) -> tuple[dict[str, Any], ...]:
    """Rules, then the outputs chosen most, then the features that say most about the output, in bits."""
    rules = [_row("rule", e.name, e.agrees, e.full, e.right, e.low, e.high) for e in look.explained]
    return (*rules, *_outputs(look), *_bits(look))


def _outputs(look: Look) -> list[dict[str, Any]]:
    asked = look.seen.asked
    return [
        _row(
            "output",
            name_of(look, label),
            mean(look.circuit == label),
            mean(look.full == label),
            None if asked is None else mean(asked[:, 0] == label),
        )
        for label in most_frequent(look.circuit)[:LISTED]
    ]


def _bits(look: Look) -> list[dict[str, Any]]:
    random, labels = look.case.random("bits"), look.seen.label
    every = bits(look.features.all, labels[CIRCUIT], random)
    most = sorted((name for name in every if every[name] > 0), key=lambda name: -every[name])[:LISTED]
    chosen = {name: look.features.all[name] for name in most}
    full = bits(chosen, labels[FULL], random)
    asked = {} if look.seen.asked is None else bits(chosen, look.seen.asked[:, 0], random)
    return [_row("bits", name, every[name], full[name], asked.get(name)) for name in most]


def _row(
    what: str,
    name: str,
    circuit: float,
    full: float,
    asked: float | None,
    low: float | None = None,
    high: float | None = None,
) -> dict[str, Any]:
    numbers = {"circuit": circuit, "low": low, "high": high, "full model": full, "asked for": asked}
    return {"what": what, "name": name} | {key: None if n is None else round(n, 4) for key, n in numbers.items()}


def picture(look: Look) -> Picture:
    """Of a board a map; of few answers what comes out by what is asked for; else how often each comes out."""
    if look.there is not None:
        return board_map(look.circuit, look.full, look.there)
    asked = look.seen.asked
    if asked is not None and asked.shape[1] == 1 and 1 < len(_few(look, asked[:, 0])) <= SHOWN:
        return _by_asked(look, asked[:, 0])
    order = most_frequent(look.circuit)
    values = [mean(look.circuit == label) for label in order]
    names = [name_of(look, label) for label in order[:SHOWN]]
    if len(order) > SHOWN:
        names.append(f"{len(order) - SHOWN} others")
        values = [*values[:SHOWN], sum(values[SHOWN:])]
    data = {"names": names, "values": [round(value, 4) for value in values]}
    return Picture("bars", "What it puts out", "", "share of the held-out inputs", data)


def _few(look: Look, asked: Tensor) -> list[int]:
    """The labels put out or asked for."""
    labels: list[int] = torch.cat([look.circuit, asked[asked >= 0]]).unique().tolist()
    return labels


def _by_asked(look: Look, asked: Tensor) -> Picture:
    """A row for each answer asked for: its shares of what comes out. A trivial circuit fills one column."""
    columns = _few(look, asked)
    rows = [label for label in columns if bool((asked == label).any())]
    values = [[round(mean(look.circuit[asked == row] == column), 4) for column in columns] for row in rows]
    data = {"x": [name_of(look, at) for at in columns], "y": [name_of(look, at) for at in rows], "values": values}
    return Picture("heat", "What it puts out, by what is asked for", "put out", "asked for", data)

"""Names of components: a3, m2, input, logits where the model is a transformer; module paths elsewhere."""

import re
from collections.abc import Sequence

from voltmeter.wiring.algebra import mixes
from voltmeter.wiring.streams import Component, Survey


def common(paths: Sequence[str]) -> str:
    """The deepest module that holds all of ``paths``."""
    split = [p.split(".") if p else [] for p in paths]
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def layer_of(path: str) -> int | None:
    """The first number in a module path."""
    for name in path.split("."):
        if re.fullmatch(r"\d+", name):
            return int(name)
    return None


def leaf_path(survey: Survey, leaf: int) -> str:
    """The module that returned a leaf (or in which it was computed)."""
    recording = survey.recording
    if leaf in survey.returned:
        return survey.returned[leaf].module
    op = recording.values[leaf].op
    if op is None or recording.ops[op].call is None:
        return ""
    return recording.calls[recording.ops[op].call].key.module  # type: ignore[index]


def component_path(survey: Survey, component: Component) -> str:
    """The module that holds a component: its reading calls and what it writes."""
    calls = survey.recording.calls
    paths = [calls[s.call].key.module for s in component.sites if s.call >= 0]
    if survey.plain and paths:  # one layer of a plain network
        return common(paths)
    paths += [leaf_path(survey, leaf) for leaf in component.feeds]
    return common(paths)


def passes_on(survey: Survey, component: Component) -> bool:
    """The component only carries a stream (through a norm or activation) into another one."""
    if len(component.feeds) != 1 or len(component.sites) != 1:
        return False
    number = survey.recording.values[component.feeds[0]].op
    if number is None:
        return False
    op = survey.recording.ops[number]
    return op.call == component.sites[0].call and not mixes(op)


def signature(survey: Survey) -> tuple[str, ...]:
    """What must be equal at every batch size and length: each component, what it reads in and what it feeds."""
    rows = []
    numbers = {state: n for stream in survey.streams for n, state in enumerate(stream.states)}
    for component in survey.components:
        calls = [survey.recording.calls[s.call].key.module if s.call >= 0 else "output" for s in component.sites]
        feeds = [leaf_path(survey, leaf) for leaf in component.feeds]
        path = component_path(survey, component) or "the model itself"
        rows.append(
            f"{path} reads state {numbers[component.state]} of stream {component.stream}"
            f" in {', '.join(calls)}, feeds {', '.join(feeds) or 'the output'}"
        )
    return (*rows, *(f"stream of {len(s.leaves)} addends" for s in survey.streams))


def component_names(survey: Survey, attention: set[int]) -> list[str]:
    """One name per component; ``attention`` holds the positions of those with heads."""
    components = survey.components
    paths = [component_path(survey, c) for c in components]
    outputs = [n for n, c in enumerate(components) if not c.feeds]
    inner = [n for n, c in enumerate(components) if c.feeds and not passes_on(survey, c)]
    short = {n: f"{'a' if n in attention else 'm'}{layer_of(paths[n])}" for n in inner}
    writers = {(short[n], components[n].feeds) for n in inner}
    numbered = all(layer_of(paths[n]) is not None for n in inner)
    usable = attention and numbered and len(writers) == len(set(short.values())) == len({f for _, f in writers})
    names = [short[n] if usable and n in short else paths[n] or "block" for n in range(len(components))]
    for n in outputs:
        names[n] = "logits" if len(outputs) == 1 else (paths[n] or f"output{components[n].outputs[0]}")
    # Cross-attention reads two streams and writes once: two components, one name.
    return _unique(names, [c.feeds for c in components])


def which_reading(survey: Survey, names: Sequence[str], streams: Sequence[str]) -> list[str]:
    """What tells apart the readers of a component that reads several streams: ``<encoder>``, ``<main>``; else ""."""
    twice = [names.count(name) > 1 for name in names]
    stream = [streams[component.stream] for component in survey.components]
    whole = _unique([f"{name}<{of}>" if two else name for name, of, two in zip(names, stream, twice, strict=True)])
    return [made.removeprefix(name) for made, name in zip(whole, names, strict=True)]


def _unique(names: list[str], keys: Sequence[tuple[int, ...]] | None = None) -> list[str]:
    """Number names that occur again, unless for the same key."""
    taken: dict[str, list[tuple[int, ...]]] = {}
    made = []
    for at, name in enumerate(names):
        key = keys[at] if keys is not None and keys[at] else (-1 - at,)  # no version is negative
        known = taken.setdefault(name, [])
        if key not in known:
            known.append(key)
        number = known.index(key)
        made.append(name if number == 0 else f"{name}#{number + 1}")
    return made


def stream_names(survey: Survey, main: int) -> list[str]:
    """ "main", and for the others the module that holds their components."""
    names = []
    for number in range(len(survey.streams)):
        paths = [leaf_path(survey, leaf) for leaf in survey.streams[number].leaves if leaf in survey.fed]
        names.append("main" if number == main else common(paths) or f"stream{number}")
    return _unique(names)


def main_stream(survey: Survey) -> int:
    """The stream that reaches the outputs (the one with most writers, if several do)."""
    reaching = [c.stream for c in survey.components if c.outputs] or list(range(len(survey.streams)))
    return max(reaching, key=lambda s: (len(survey.streams[s].leaves), s))

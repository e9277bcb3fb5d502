"""Every model of the two zoos is wired as it was worked out by hand, or refused by name.

The zoos are tested first, by themselves: a specimen that is silent, random or not what it claims would let a wrong
wiring pass. Everything runs on the installed transformers; the last test runs this file again on 4.57.
"""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
import zoo
import zoo_plain
from conftest import asset, run_on_transformers457
from specimen import (
    Counts,
    Specimen,
    call,
    chain_counts,
    chain_story,
    counts_of,
    edges_of,
    mapped,
    parallel_counts,
    parallel_story,
    sequential_counts,
    sequential_story,
    tensors_of,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import voltmeter
from voltmeter.errors import WiringError

BATCH, LENGTH = 3, 8
SPECIMENS = (*zoo.ZOO, *zoo_plain.ZOO)
WIRED = [specimen for specimen in SPECIMENS if specimen.expect is not None]
REFUSED = [specimen for specimen in SPECIMENS if specimen.refuses is not None]
TOUCHY = {"gpt2-eager", "falcon-new", "mamba", "t5", "add-in-place", "pass-through", "resnet-preact", "compiled"}
RANDOM = {"dropout-always-on", "noise", "training-mode"}
NOT_RUNNABLE = {"meta", "nan"}

EXACT = 1e-12  # float64, a few dozen additions of numbers of size 1
CAST_DOWN = 1e-6  # some operation rounds to float32
SINGLE = 2e-5  # float32 throughout: rounding of its sums, grown by three layers


def each(specimens: list[Specimen]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("specimen", specimens, ids=str)


def build(specimen: Specimen) -> nn.Module:
    """The specimen, without the compiler around it: what is tested is not the compiler."""
    model = specimen.build()
    return getattr(model, "_orig_mod", model)


@torch.no_grad()
def outputs(model: nn.Module, inputs: object) -> tuple[Tensor, ...]:
    return tensors_of(call(model, mapped(torch.clone, inputs)))


def largest_difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


# The zoos by themselves

RUNNABLE = [specimen for specimen in SPECIMENS if specimen.name not in NOT_RUNNABLE]
STEADY = [specimen for specimen in WIRED if specimen.name not in RANDOM]


def test_names_are_unique() -> None:
    names = [specimen.name for specimen in SPECIMENS]
    assert sorted(set(names)) == sorted(names)


@each(list(SPECIMENS))
def test_a_specimen_is_either_expected_or_refused(specimen: Specimen) -> None:
    assert (specimen.expect is None) != (specimen.refuses is None)
    assert bool(specimen.culprit) == (specimen.refuses is not None)


@each(RUNNABLE)
def test_it_runs_and_two_builds_agree(specimen: Specimen) -> None:
    inputs = specimen.example(BATCH, LENGTH)
    torch.manual_seed(0)
    first = outputs(build(specimen), inputs)
    torch.manual_seed(0)
    assert all(value.isfinite().all() for value in first)
    again = build(specimen)
    torch.manual_seed(0)
    model = build(specimen)
    torch.manual_seed(0)
    assert largest_difference(outputs(model, inputs), outputs(model, inputs)) == 0 or specimen.name in RANDOM
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@each(STEADY)
def test_rows_are_independent_and_differ(specimen: Specimen) -> None:
    model, inputs = build(specimen), specimen.example(BATCH, LENGTH)
    together = outputs(model, inputs)
    alone = outputs(model, mapped(lambda tensor: tensor[1:2], inputs))
    assert largest_difference(tuple(value[1:2] for value in together), alone) < 2e-5
    assert all((value[0] - value[1]).std() > 0.3 * value.std() for value in together)


@each([specimen for specimen in STEADY if specimen.causal])
def test_causal_models_are(specimen: Specimen) -> None:
    model, inputs = build(specimen), specimen.example(BATCH, LENGTH)
    cut = outputs(model, mapped(lambda tensor: tensor[:, : LENGTH - 3], inputs))
    whole = outputs(model, inputs)
    assert largest_difference(tuple(value[:, : LENGTH - 3] for value in whole), cut) < 1e-4


def test_the_arithmetic_gives_the_sizes_that_are_known() -> None:
    for computed, known in zoo.KNOWN_SIZES.values():
        assert computed == known


@pytest.mark.parametrize(("layers", "heads", "kv"), [(1, 1, 1), (2, 4, 2), (3, 4, 4), (5, 8, 4)])
def test_the_arithmetic_agrees_with_the_story(layers: int, heads: int, kv: int) -> None:
    assert sequential_counts(layers, heads, kv) == counts_of(sequential_story(layers, heads, kv))
    assert parallel_counts(layers, heads, kv) == counts_of(parallel_story(layers, heads, kv))
    assert chain_counts(layers) == counts_of(chain_story(tuple(f"blocks.{i}" for i in range(layers))))


def test_parallel_differs_from_sequential_by_the_heads_of_each_layer() -> None:
    gone = edges_of(sequential_story(2, 2, 2)) - edges_of(parallel_story(2, 2, 2))
    assert gone == {f"a{layer}.h{head} -> m{layer}" for layer in range(2) for head in range(2)}


# What voltmeter makes of them


def wire(specimen: Specimen, dtype: torch.dtype) -> voltmeter.Wiring:
    model = specimen.build()
    if not any(parameter.is_meta for parameter in model.parameters()):
        model = model.to(dtype)
    inputs = specimen.example(BATCH, LENGTH)
    return voltmeter.wire(model, mapped(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs))


@functools.cache
def wired(specimen: Specimen) -> voltmeter.Wiring:
    """Once for all tests of a specimen, in float64 where the model's own code allows it."""
    return wire(specimen, torch.float64 if specimen.float64 else torch.float32)


def stream_counts(wiring: voltmeter.Wiring) -> list[Counts]:
    """Sizes of every stream, the main one first."""
    sizes = []
    for stream in sorted(wiring.streams, key=lambda stream: stream.name != "main"):
        writers, readers = set(stream.writers), set(stream.readers)
        edges = sum(edge.writer in writers and edge.reader in readers for edge in wiring.edges)
        sizes.append(Counts(len(stream.writers), len(stream.readers), edges))
    return sizes


@each(WIRED)
def test_wired_as_worked_out_by_hand(specimen: Specimen) -> None:
    expect = specimen.expect
    assert expect is not None
    wiring = wired(specimen)
    sizes = stream_counts(wiring)
    if expect.main is not None:
        assert sizes[0] == expect.main, expect.why
    if expect.main is not None and expect.others is not None:
        assert sorted(sizes[1:]) == sorted(expect.others), expect.why
    if expect.edges is not None:
        found = {str(edge) for edge in wiring.edges}
        missing, extra = sorted(expect.edges - found), sorted(found - expect.edges)
        assert (missing[:9], extra[:9]) == ([], []), expect.why
    assert not set(expect.writers) - {writer.name for writer in wiring.writers}
    assert not set(expect.readers) - {reader.name for reader in wiring.readers}


def test_a_real_model_has_the_size_the_design_states() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(asset("stories260K"))
    wiring = voltmeter.wire(model.eval(), torch.arange(3, 19).reshape(2, 8))
    assert stream_counts(wiring) == [Counts(46, 86, 1701)]


@each(WIRED)
def test_every_node_is_of_use(specimen: Specimen) -> None:
    """Nothing is there twice, and nothing without an edge."""
    wiring = wired(specimen)
    edges = [str(edge) for edge in wiring.edges]
    assert len(set(edges)) == len(edges)
    assert {edge.writer for edge in wiring.edges} == {writer.name for writer in wiring.writers}
    assert {edge.reader for edge in wiring.edges} == {reader.name for reader in wiring.readers}
    assert sum(size.edges for size in stream_counts(wiring)) == len(edges), "streams share an edge"


@each(WIRED)
def test_verified(specimen: Specimen) -> None:
    expect = specimen.expect
    assert expect is not None
    tolerance = SINGLE if not specimen.float64 else CAST_DOWN if expect.casts else EXACT
    verified = wired(specimen).verified
    assert verified.sum_error <= tolerance
    assert verified.law1_error <= tolerance
    assert verified.law2_error <= tolerance * 10  # a whole forward pass lies between
    assert not wired(specimen).rows.mixed, "its rows are independent: see above"


@each([specimen for specimen in WIRED if specimen.name in TOUCHY])
def test_wiring_leaves_the_model_as_it_was(specimen: Specimen) -> None:
    """In float32, which is what models come in."""
    model, inputs = specimen.build(), specimen.example(BATCH, LENGTH)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = mapped(torch.clone, inputs)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    random = torch.get_rng_state()
    voltmeter.wire(model, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(inputs), tree_leaves(given), strict=True))


@each(REFUSED)
def test_refused_by_name(specimen: Specimen) -> None:
    with pytest.raises(WiringError) as caught:
        wire(specimen, torch.float32)
    assert specimen.culprit in str(caught.value), specimen.refuses
    assert caught.value.mend, "an error says what to do"


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="this is that run")
def test_the_same_on_transformers_457() -> None:
    """The Hugging Face families again, in a process of their own, with transformers 4.57 in front of 5.x."""
    chosen = " or ".join(f"[{specimen.name}]" for specimen in zoo.ZOO)
    command = ["-m", "pytest", "-n", "0", "-q", "-k", f"({chosen}) and (runs or wired or verified)", __file__]
    finished = run_on_transformers457(command, timeout_seconds=200)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-1000:]

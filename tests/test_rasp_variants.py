"""Noised, rotated, compressed and imitated models: the same function, as near as they say, in other weights."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

import voltmeter as vm
from voltmeter.errors import AddressError, ProgramError, TruthError
from voltmeter.rasp.compare import compare_circuits
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.components import component_names, run_components
from voltmeter.rasp.compress import compressed, narrowest_exact
from voltmeter.rasp.imitate import Imitation, Recipe, imitate, interchange_agreement
from voltmeter.rasp.model import CompiledTransformer
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.truth import truth
from voltmeter.rasp.variants import Variant, decoded, noised, rotated
from voltmeter.rasp.wired import wiring_of

NAMES = ("frac_prevs_x", "hist", "pair_balance", "previous_token", "reverse")  # one head and two, numbers, undefined
EXACT = 1e-9  # rounding of 1e-16, amplified by scores and steps of 100 in up to four layers


@functools.cache
def small(name: str) -> Compiled:
    return compiled(program(name), limit=64)


@functools.cache
def imitation(aligned: bool) -> Imitation:
    """Of hist, over all its inputs."""
    return imitate(compiled(program("hist")), 0, Recipe(aligned=aligned))


def same_weights(a: CompiledTransformer, b: CompiledTransformer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@functools.cache
def outputs_under_cuts(given: Compiled) -> Tensor:
    """Outputs after BOS with each edge of the dataflow cut in turn, to zero and to another input's run.

    Not at BOS: values that no program means stand on the ramps of steps there, where rounding is amplified most.
    """
    tokens, wiring = given.model.encode(given.inputs), wiring_of(given).wiring
    names = [str(edge) for edge in wiring.edges]
    other = tokens.roll(len(tokens) // 2 + 1, 0)
    assert given.provenance
    keep = torch.tensor([[float(name != edge) for name in names] for edge in given.provenance], dtype=torch.float64)
    zeroed = vm.run(wiring, tokens, keep, vm.fill.zero(), axes="circuit edge")
    resampled = vm.run(wiring, tokens, keep, vm.fill.resample(), other, axes="circuit edge")
    return torch.stack([zeroed, resampled])[:, :, :, 1:]


# --- components -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_components_add_up_to_the_model(name: str) -> None:
    given = small(name)
    tokens = given.model.encode(given.inputs)
    outputs, wrote = run_components(given.model, tokens)
    torch.testing.assert_close(outputs, given.model(tokens), rtol=0, atol=EXACT)
    # the compiler leaves attention's output bias zero: nothing else is in the stream
    torch.testing.assert_close(given.model.unembedding(sum(wrote.values())), outputs, rtol=0, atol=EXACT)
    assert tuple(wrote) == ("input.tok", "input.pos", *component_names(given.model))


def test_swapping_every_component_gives_the_other_input_and_an_unknown_one_is_refused() -> None:
    given = small("pair_balance")
    tokens = given.model.encode(given.inputs)
    other = tokens.flip(0)
    wanted, wrote = run_components(given.model, other)
    made, _ = run_components(given.model, tokens, wrote)
    torch.testing.assert_close(made, wanted, rtol=0, atol=EXACT)
    with pytest.raises(AddressError, match="pair_balance has no component of these names") as refused:
        run_components(given.model, tokens, {"a0.h7": wanted})
    assert "'a0.h7' (nearest: a0.h1, a0.h0, " in str(refused.value)


# --- rotated --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_rotated_model_computes_the_same_also_when_cut(name: str) -> None:
    given = small(name)
    made = rotated(given, seed=0)
    assert 0 < made.deviation < EXACT
    assert made.agreement == 1.0
    before, after = outputs_under_cuts(given), outputs_under_cuts(made.compiled)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)  # scores of 100 cut halfway amplify rounding


def test_a_rotated_model_has_no_dimension_with_a_meaning() -> None:
    given = small("reverse")
    made = rotated(given, seed=0).compiled.model
    assert bool((given.model.token_embedding.weight == 0).double().mean() > 0.9)
    assert not bool((made.token_embedding.weight[:-1] == 0).any())
    assert set(made.interface.labels) == {f"mixed:{at}" for at in range(made.shape.d_model)}
    assert made.interface.output == ()
    assert not same_weights(made, rotated(given, seed=1).compiled.model)


@pytest.mark.parametrize("name", ["frac_prevs_x", "reverse"])
def test_outputs_keep_their_names_where_no_dimension_holds_them(name: str) -> None:
    given = small(name)
    face = given.model.interface
    assert face.output_labels == tuple(face.labels[at] for at in face.output)
    narrow = compressed(given, narrowest_exact(given), 0)
    others = (
        rotated(given, 0),
        rotated(rotated(given, 0).compiled, 1),
        narrow,
        imitate(given, 0, Recipe(steps=1)).variant,
    )
    for made in others:
        mixed = made.compiled.model.interface
        assert mixed.output_labels == face.output_labels
        assert not set(mixed.output_labels) & set(mixed.labels)


# --- noised ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_noised_model_is_off_by_what_it_says(name: str) -> None:
    given = small(name)
    made = noised(given, scale=1e-6, seed=0)
    tokens = given.model.encode(given.inputs)
    apart = (made.compiled.model(tokens) - given.model(tokens))[:, 1:].abs().amax(-1)
    apart = apart[torch.tensor([[value is not None for value in row] for row in given.outputs])]
    assert made.deviation == float(apart.max()) > 0
    assert made.agreement == 1.0
    assert noised(given, scale=1e-7, seed=0).deviation < made.deviation


def test_noise_reaches_weights_that_are_zero_but_no_bias_that_no_edge_carries() -> None:
    given = small("frac_prevs_x")
    made = noised(given, scale=1e-6, seed=0).compiled.model
    zero = given.model.layers[0].attention.query.weight  # the program's head is in layer 1
    assert not bool(zero.any())
    assert bool(made.layers[0].attention.query.weight.all())
    assert not bool(made.layers[1].attention.output.bias.any())


def test_too_much_noise_is_refused_with_what_it_did() -> None:
    with pytest.raises(TruthError, match="hist noised does not compute what hist computes") as refused:
        noised(small("hist"), scale=0.1, seed=0)
    assert "0.1 is allowed\n  scale 0.1\n  decoded, " in str(refused.value)
    assert str(refused.value).endswith("% of its outputs are the same\n  change it less, or allow more (tolerance=)")


@pytest.mark.parametrize("scale", [0.0, -1e-6])
def test_no_noise_is_refused(scale: float) -> None:
    with pytest.raises(ProgramError) as refused:
        noised(small("hist"), scale=scale, seed=0)
    assert str(refused.value) == f"hist cannot be noised at scale {scale}\n  give a scale above zero"


def test_a_program_that_defines_nothing_has_no_variant() -> None:
    undefined = dataclasses.replace(small("hist"), outputs=((None,) * 5,) * len(small("hist").inputs))
    with pytest.raises(ProgramError) as refused:
        rotated(undefined, seed=0)
    assert str(refused.value) == (
        "hist defines no output on any of its 64 inputs, so that none can differ\n"
        "  give it inputs on which it does: dataclasses.replace(compiled, inputs=..., outputs=...)"
    )


# --- compressed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_narrowest_exact_stream_tells_every_reader_the_same(name: str) -> None:
    given = small(name)
    width = narrowest_exact(given)
    assert width < given.model.shape.d_model
    made = compressed(given, width, seed=0)
    assert made.deviation < EXACT
    assert made.compiled.model.shape.d_model == width
    before, after = outputs_under_cuts(given), outputs_under_cuts(made.compiled)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)  # scores of 100 cut halfway amplify rounding


def test_a_narrower_stream_is_trained_until_it_will_do() -> None:
    given = small("frac_prevs_x")
    width = narrowest_exact(given) - 1
    losses: list[float] = []
    made = compressed(given, width, seed=0, tolerance=0.05, progress=lambda step, loss: losses.append(loss))
    assert EXACT < made.deviation < 0.05
    assert len(losses) == made.settings["steps"]
    assert losses[-1] < losses[0]
    with pytest.raises(TruthError, match="frac_prevs_x compressed does not compute what frac_prevs_x computes"):
        compressed(given, width, seed=0, tolerance=0.05, steps=0)


def test_a_spare_dimension_does_no_harm_and_none_is_refused() -> None:
    given = small("hist")
    assert compressed(given, narrowest_exact(given) + 2, seed=0).deviation < EXACT
    with pytest.raises(ProgramError) as refused:
        compressed(given, 0, seed=0)
    assert str(refused.value) == (
        "hist cannot be compressed to 0 dimensions\n  its stream has 18\n"
        "  give a width from 1 to 18; narrowest_exact(compiled) is the least that loses nothing"
    )


# --- what a variant says of itself ----------------------------------------------------------------


def made_each_way(given: Compiled, seed: int) -> tuple[Variant, ...]:
    return (
        noised(given, 1e-6, seed),
        rotated(given, seed),
        compressed(given, narrowest_exact(given), seed),
        imitate(given, seed, Recipe(steps=3)).variant,
    )


def test_variants_say_how_they_were_made_and_are_the_same_for_the_same_seed() -> None:
    given = small("hist")
    before = [weight.clone() for weight in given.model.parameters()]
    for one, again, other in zip(*(made_each_way(given, seed) for seed in (0, 0, 1)), strict=True):
        assert same_weights(one.compiled.model, again.compiled.model)
        assert not same_weights(one.compiled.model, other.compiled.model)
        assert (one.of, one.seed, one.compiled.name) == ("hist", 0, f"hist {one.kind}")
        assert one.compiled.inputs == given.inputs
        assert one.compiled.provenance == given.provenance
        assert not any(weight.requires_grad for weight in one.compiled.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, given.model.parameters(), strict=True))


def test_numbers_are_decoded_to_the_nearest_that_the_program_gives() -> None:
    given = small("frac_prevs_x")
    outputs = torch.tensor([[0.0, 0.02, 0.26, 0.49, 0.97, 7.0]], dtype=torch.float64)[:, :, None]
    known = sorted({value for row in given.outputs for value in row if value is not None})
    assert [known[at] for at in decoded(given, outputs)[0].tolist()] == [0.0, 0.25, 0.5, 1.0, 1.0]


# --- imitated -------------------------------------------------------------------------------------


def test_an_imitation_behaves_alike_and_only_an_aligned_one_works_alike() -> None:
    aligned, free = imitation(aligned=True), imitation(aligned=False)
    assert aligned.variant.agreement > 0.9
    assert free.variant.agreement > 0.9
    assert set(aligned.interchange) == {"a0.h0", "m0"}
    assert min(aligned.interchange.values()) > 0.8  # 0.97 and 0.99 were measured
    assert free.interchange["a0.h0"] < 0.5  # 0.02: its head computes something else, or in another code
    assert free.variant.compiled.provenance is None


def test_the_compiled_model_itself_passes_every_interchange_and_a_damaged_one_fails() -> None:
    given = small("hist")
    assert interchange_agreement(given, given.model, seed=0) == {"a0.h0": 1.0, "m0": 1.0}
    damaged = rotated(given, seed=0).compiled.model
    damaged.layers[0].mlp.second.weight.zero_()
    assert interchange_agreement(given, damaged, seed=0)["a0.h0"] < 0.5


def test_the_circuit_of_an_imitation_beside_the_compiled_one() -> None:
    """Trained to the same interchanges, it needs what the program needs, and its values as well.

    τ is half of what tells two counts apart: below it are effects that no decoded output feels.
    """
    given = compiled(program("hist"))
    learned = imitation(aligned=True).variant.compiled
    ours, theirs = (truth(each, "resample", tolerance=0.5) for each in (given, learned))
    found = compare_circuits(ours.necessary, theirs.necessary, edges=ours.effects)
    assert found.both == ours.necessary
    assert found.only_first == ()
    assert found.only_second == ("input.tok -> a0.h0<v>",)  # a compiled head reads BOS there, which no input changes
    assert found.jaccard == 4 / 5
    assert compare_circuits(ours.necessary, ours.necessary).jaccard == 1.0


def test_progress_is_told_and_a_recipe_that_cannot_be_followed_is_refused() -> None:
    given = small("previous_token")
    told: list[int] = []
    imitate(given, 0, Recipe(steps=4, aligned=False), progress=lambda step, loss: told.append(step))
    assert told == [1, 2, 3, 4]
    with pytest.raises(ProgramError) as refused:
        imitate(given, 0, Recipe(steps=0, d_head=-1, learning_rate=0.0))
    assert str(refused.value) == (
        "previous_token cannot be imitated by this recipe\n  steps is 0\n  d_head is -1\n  learning_rate is 0.0\n"
        "  give numbers above zero"
    )

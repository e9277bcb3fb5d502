"""``record``: what writers write and readers read, copied while the model runs exactly as it would."""

from __future__ import annotations

import laws
import models
import pytest
import torch
from cases import Case, cases
from hypothesis import given, settings
from models import Residual, Transformer, wired
from torch import Tensor, nn

import voltmeter
from voltmeter import record
from voltmeter.errors import AddressError
from voltmeter.run.record import Recorded

MODEL = Transformer(layers=2, heads=2, kv=1, norm="layer", mlp="gated", seed=7)
WIRING = wired(MODEL)
WRITERS = [writer.name for writer in WIRING.writers]
READERS = [reader.name for reader in WIRING.readers]
INPUTS = MODEL.inputs(2, 4, seed=1)


def seen_at(*addresses: str) -> Recorded:
    with record(WIRING, addresses) as seen, torch.no_grad():
        WIRING.model(INPUTS)
    return seen


# Addresses


def test_every_writer_when_nothing_is_named() -> None:
    with record(WIRING) as seen, torch.no_grad():
        WIRING.model(INPUTS)
    assert list(seen) == WRITERS, "in the order in which they write"
    assert len(seen) == len(WRITERS)
    assert all(tensor.shape == (2, 4, models.WIDTH) for tensor in seen.values())


def test_what_is_asked_for_is_found_under_the_address_that_was_given() -> None:
    for asked in (["m0:out"], ["m0:in"], ["m0:in", "m0:out"], ["m0", "m0:in", "m0:out"], ["logits", "a1.h0<q>:in"]):
        assert set(seen_at(*asked)) == set(asked)


def test_one_name_is_no_list_of_letters() -> None:
    with record(WIRING, "m0") as seen, torch.no_grad():
        WIRING.model(INPUTS)
    assert list(seen) == ["m0"]


def test_a_name_that_is_both_is_the_writer() -> None:
    seen = seen_at("m0", "m0:out", "m0:in")
    assert torch.equal(seen["m0"], seen["m0:out"])
    assert not torch.equal(seen["m0"], seen["m0:in"])


def test_a_writer_writes_what_its_module_returns() -> None:
    returned: list[Tensor] = []
    handle = WIRING.model.get_submodule("blocks.1.mlp").register_forward_hook(lambda *given: returned.append(given[-1]))
    seen = seen_at("m1")
    handle.remove()
    assert torch.equal(seen["m1"], returned[0])


def test_readers_of_one_state_read_the_same() -> None:
    """The norm comes after; q, k and v of all heads see one version of the stream."""
    together = [name for name in READERS if name.startswith("a1.")]
    seen = seen_at(*together)
    assert all(torch.equal(seen[name], seen[together[0]]) for name in together)


@settings(max_examples=12)
@given(cases(of=[r for r in models.RECIPES if not getattr(r, "biases", False)], fills=("zero",), axes=("edge",)))
def test_what_writers_write_adds_up_to_what_readers_read(case: Case) -> None:
    """In these models attention has no biases, so there are no constants beside the writers."""
    seen = laws.recorded(case)
    for reader in case.wiring.readers:
        terms = [seen[f"{edge.writer}:out"] for edge in case.wiring.edges if edge.reader == reader.name]
        laws.assert_close(sum(terms), seen[f"{reader.name}:in"], laws.EXACT, reader.name)


@settings(max_examples=8)
@given(cases(of=[t for t in models.TRANSFORMERS if t.biases], fills=("zero",), axes=("edge",)))
def test_and_biases_of_attention_make_up_the_rest(case: Case) -> None:
    seen, model = laws.recorded(case), case.wiring.model
    total = sum(seen[f"{writer.name}:out"] for writer in case.wiring.writers)
    biases = sum(block.attention.out.bias for block in model.blocks)
    laws.assert_close(total + biases, seen["logits:in"], laws.EXACT)


UNKNOWN = (
    "4 addresses are those of no reader or writer\n"
    "  'm7' (nearest: m1, m0, input)\n"
    "  'logits:out' (nearest: logits, input, a1.h1)\n"
    "  'input:in' (nearest: input, m1, m0)\n"
    "  'a0.h9' (nearest: a0.h1, a0.h0, a1.h1)\n"
    "  list them with wiring.writers and wiring.readers"
)


def test_unknown_addresses_are_all_listed() -> None:
    with pytest.raises(AddressError) as caught:
        seen_at("m7", "m0", "logits:out", "input:in", "a0.h9")
    lines, expected = str(caught.value).split("\n"), UNKNOWN.split("\n")
    assert len(lines) == len(expected)
    assert [line.split(" (")[0] for line in lines] == [line.split(" (")[0] for line in expected]
    assert all("nearest: " in line for line in lines[1:-1])


def test_an_address_that_was_not_asked_for() -> None:
    seen = seen_at("m0", "m1")
    with pytest.raises(AddressError) as caught:
        seen["m0:in"]
    assert str(caught.value) == "'m0:in' was not recorded\n  nearest: m0, m1"
    assert "m0:in" not in seen
    assert "m1" in seen


# Runs


def test_a_model_that_does_not_run() -> None:
    text = "nothing was recorded: the model did not run inside the with"
    with pytest.raises(AddressError) as caught, record(WIRING):
        pass
    assert str(caught.value) == text
    seen = Recorded()
    assert len(seen) == 0
    assert list(seen) == []
    assert "m0" not in seen
    with pytest.raises(AddressError, match=text):
        seen["m0"]


def test_a_part_of_the_model_is_no_run_of_it() -> None:
    with pytest.raises(AddressError, match="did not run"), record(WIRING):
        WIRING.model.get_submodule("blocks.0")(torch.zeros(1, 2, models.WIDTH, dtype=torch.float64))


def test_an_error_inside_is_not_replaced() -> None:
    with pytest.raises(ZeroDivisionError), record(WIRING):
        _ = 1 / 0


def test_several_runs() -> None:
    other = MODEL.inputs(1, 3, seed=2)
    with record(WIRING, ["m0"]) as seen, torch.no_grad():
        WIRING.model(INPUTS)
        WIRING.model(other)
    assert [run["m0"].shape[:2] for run in seen.runs] == [(2, 4), (1, 3)]
    assert torch.equal(seen["m0"], seen.runs[-1]["m0"]), "the last one, by address"


def test_the_model_runs_as_it_would() -> None:
    expected = WIRING.model(INPUTS)
    with laws.law_5(WIRING.model, INPUTS), record(WIRING, [*WRITERS, *READERS]):
        found = WIRING.model(INPUTS)
    assert torch.equal(found, expected)


def test_a_model_can_be_trained_under_it() -> None:
    model = models.built(MODEL)
    with record(WIRING.bind(model)):
        model(INPUTS).square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters()}
    expected = models.built(MODEL)
    expected(INPUTS).square().sum().backward()
    for name, weight in expected.named_parameters():
        assert torch.equal(found[name], weight.grad), name


# Copies


class InPlace(nn.Module):
    """The stream is overwritten by each block, and each block's own output by the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(models.WIDTH, models.WIDTH)
        self.blocks = nn.ModuleList([nn.Linear(models.WIDTH, models.WIDTH) for _ in range(3)])
        self.head = nn.Linear(models.WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x += torch.tanh(self.blocks[0](x))
        out = torch.tanh(self.blocks[1](x))
        out += x
        x = out
        x.add_(torch.tanh(self.blocks[2](x)))
        return self.head(x)


class OutOfPlace(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)


@pytest.mark.parametrize("detach", [True, False])
def test_copies_are_not_overwritten_by_the_model(detach: bool) -> None:
    inputs = models.seeded(3, 2, 4, models.WIDTH).double()
    found = []
    for kind in (InPlace, OutOfPlace):
        wiring = voltmeter.wire(models.enliven(kind()).double(), inputs)
        names = [f"{w.name}:out" for w in wiring.writers] + [f"{r.name}:in" for r in wiring.readers]
        with record(wiring, names, detach=detach) as seen, torch.no_grad():
            wiring.model(inputs)
        found.append(dict(seen))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        laws.assert_close(tensor, found[1][name], laws.EXACT, name)


def test_detached_unless_asked_otherwise() -> None:
    with record(WIRING, ["m0", "logits"]) as seen:
        WIRING.model(INPUTS)
    assert not any(tensor.requires_grad for tensor in seen.values())
    with record(WIRING, ["m0", "logits"], detach=False) as seen:
        WIRING.model(INPUTS)
    assert all(tensor.requires_grad for tensor in seen.values())


def test_gradients_of_what_was_recorded() -> None:
    case = Case(Residual(), 2, 3, "zero", "edge", binary=True, seed=1)
    inputs = case.inputs.requires_grad_()
    with record(case.wiring, ["blocks.1"], detach=False) as seen:
        case.wiring.model(inputs)
    slope = torch.autograd.grad(seen["blocks.1"].sum(), inputs)[0]
    nudge = torch.zeros_like(slope)
    nudge[0, 1, 2] = 1e-5
    sums = []
    for sign in (1, -1):
        with record(case.wiring, ["blocks.1"]) as seen, torch.no_grad():
            case.wiring.model(inputs + sign * nudge)
        sums.append(seen["blocks.1"].sum())
    assert torch.allclose((sums[0] - sums[1]) / 2e-5, slope[0, 1, 2], rtol=1e-6)

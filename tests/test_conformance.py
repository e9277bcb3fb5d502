"""Every discovery method, found by introspection, keeps the promises that methods make.

A method joins by being registered: nothing here lists them. What a method does otherwise is declared, with the reason,
in ``DIFFERENT``; a declaration that is no longer true fails too.
"""

import copy
import importlib
import inspect
import io
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import voltmeter as vm
from voltmeter.discover import FILLS, METHODS, Method, Question, ask, method_named
from voltmeter.discover.known import known_question
from voltmeter.discover.method import State, run_method
from voltmeter.errors import MetricError, VoltmeterError
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question as Asked
from voltmeter.rasp.setting import setting_of
from voltmeter.rasp.wired import wiring_of
from voltmeter.task import Metric, Pairs, Task, metric_named, metric_of
from voltmeter.wiring.wiring import Wiring

QUICK: dict[str, dict[str, Any]] = {
    "acdc": {"thresholds": (0.01, 0.1)},  # one search over all edges for each
    "edge-pruning": {"n_steps": 4},
    "edge-sp": {"n_steps": 4},
    "eap-ig-activations": {"n_points": 2, "max_rows": 32},  # a run for each writer and point, in several steps
    "ensemble": {"member_settings": {"edge-sp": {"n_steps": 2}}},
    "node-sp": {"n_steps": 4},
    "ugs": {"n_steps": 4},
}
"""Settings for methods that would take long: fewer steps, which change no promise."""

LONG_ENOUGH: dict[str, dict[str, Any]] = {
    name: {"n_steps": 60, "objective": "metric"} for name in ("edge-pruning", "edge-sp", "node-sp", "ugs")
} | {
    "acdc": {"objective": "metric", "thresholds": (0.01,)},
    "ensemble": {"member_settings": {"edge-sp": {"n_steps": 60, "objective": "metric"}}},
}
"""Settings with which a method must find something."""

DIFFERENT: dict[str, dict[str, str]] = {
    "the seed changes the scores": {
        "edge-pruning": "masks are drawn",
        "edge-sp": "masks are drawn",
        "ensemble": "one of its members draws masks",
        "node-sp": "masks are drawn",
        "random": "that is all there is to it",
        "ugs": "masks are drawn",
    },
    "a planted edge does not outrank the others": {
        "magnitude": "it looks at no metric, so an edge into a head that nothing reads scores as any other",
        "node-sp": "what the head's queries, keys and values read shares its nodes, so they score the same",
        "prune-only": "every edge scores 0",
        "random": "scores are random numbers",
    },
    "kl is refused": {
        "atp*": "it takes the gradient at the full model, where that of kl is zero",
        "eap": "as atp*",
        "ensemble": "eap is one of its members",
        "hisp": "as atp*",
        "relp": "as atp*",
    },  # the EAP-IG methods average over points off the full model
    "a metric without a gradient is refused": {
        "atp*": "it follows the gradient",
        "eap": "it follows the gradient",
        "eap-ig-activations": "it follows the gradient",
        "eap-ig-inputs": "it follows the gradient",
        "edge-pruning": "it follows the gradient, and has no logits to compare with kl",
        "edge-sp": "as edge-pruning",
        "ensemble": "eap is one of its members",
        "hisp": "it follows the gradient",
        "node-sp": "as edge-pruning",
        "relp": "it follows the gradient",
        "ugs": "as edge-pruning",
    },
}
"""What is not so for every method: claim -> method -> why."""

PAIRS = 5


def claimed(claim: str, method: Method) -> bool:
    return method.name in DIFFERENT[claim]


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return method_named(request.param, QUICK.get(request.param))


def tiny(seed: int = 0, metric: Metric | None = None, device: str = "cpu") -> tuple[Wiring, Task]:
    """A transformer of two layers, 23 edges, in float64; pairs that differ in their first token."""
    recipe = models.Transformer(layers=2, heads=1, kv=1)
    wiring = models.wired(recipe)
    if device != "cpu":
        wiring = replace(wiring, model=models.built(recipe).to(device))
    clean = models.tokens(PAIRS, 4, seed)
    corrupted = clean.clone()
    corrupted[:, 0] = (corrupted[:, 0] + 1) % models.VOCABULARY
    answers = torch.arange(PAIRS) % models.VOCABULARY
    pairs = Pairs.of(clean, corrupted, answers, (answers + 1) % models.VOCABULARY)
    return wiring, Task("tiny", pairs, pairs, metric or metric_named("logit-difference"))


def asked(seed: int = 0, fill: str = "resample", **of_task: Any) -> Question:
    return ask(*tiny(**of_task), fill, seed=seed, batch_size=3)  # two batches, of 3 and 2


# One interface -------------------------------------------------------------------------------------------------


def subclasses(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_method_in_the_package_is_registered_by_importing_it() -> None:
    """``import voltmeter`` is enough: no method waits in a module that nobody imports."""
    known = dict(METHODS)
    package = importlib.import_module("voltmeter.discover")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"voltmeter.discover.{module.name}")
    own = {each for each in subclasses(Method) if each.__module__.startswith("voltmeter.")}
    final = {each for each in own if not inspect.isabstract(each)}
    assert set(known.values()) == final
    assert all(cls.name == name for name, cls in known.items())
    assert not [cls for cls in final if cls.__subclasses__()], "a class is abstract or final"


def test_what_is_declared_is_about_methods_that_there_are() -> None:
    named = {name for table in (QUICK, LONG_ENOUGH, *DIFFERENT.values()) for name in table}
    assert named <= set(METHODS)


def test_a_method_is_a_frozen_value_with_plain_settings(method: Method) -> None:
    assert is_dataclass(method)
    for name in ("name", *(field.name for field in fields(method)[:1])):
        with pytest.raises(FrozenInstanceError):
            setattr(method, name, None)
    settings = method.settings()
    assert list(settings) == [field.name for field in fields(method)]
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in _through_json(settings).items()}
    assert _through_json(method_named(method.name, read).settings()) == _through_json(settings)
    assert method_named(method.name).settings().keys() == settings.keys(), "every setting has a default"


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_method_says_what_it_costs_and_what_its_sign_means(method: Method) -> None:
    docs = inspect.getdoc(type(method)) or ""
    assert re.search(r"\b[Cc]osts?\b|per batch", docs), "its docstring says what it costs"
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*\*?", method.name)
    assert re.match(r"positive: |magnitude: |none: |the largest threshold", method.sign)


def test_unknown_settings_are_errors(method: Method) -> None:
    with pytest.raises(VoltmeterError, match=f"{re.escape(method.name)} has no setting called 'stepps'"):
        method_named(method.name, {"stepps": 3})


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "resample"])  # the other tests ask under it
def test_every_fill_gives_one_finite_score_per_edge(method: Method, fill: str) -> None:
    question = asked(fill=fill)
    values = run_method(method, question)
    assert values.shape == (question.n_edges,)
    assert bool(values.isfinite().all())


def test_scores_carry_their_conditions(method: Method) -> None:
    wiring, task = tiny()
    found = vm.discover(wiring, task, method, "zero", seed=5, batch_size=4)
    told = found.conditions
    assert (told.task, told.fill, told.metric, told.seed) == ("tiny", "zero", "logit-difference", 5)
    assert (told.sign, told.dtype, found.method) == (method.sign, "float64", method.name)
    assert told.settings["batch_size"] == 4
    plain = _through_json(method.settings())
    assert {name: told.settings[name] for name in plain} == plain
    assert set(told.digests) == {"model", "wiring", "task"}
    assert found.edges == wiring.edges.names


def test_progress_is_told_of_every_step(method: Method) -> None:
    question, seen = asked(), list[tuple[int, int]]()
    run_method(method, question, lambda step, steps, state: seen.append((step, steps)))
    steps = method.steps(question)
    assert seen == [(number + 1, steps) for number in range(steps)]


# The same question gives the same answer --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(method: Method) -> None:
    one = run_method(method, asked(seed=3))
    torch.rand(7)  # the caller's generator is elsewhere now
    assert torch.equal(one, run_method(method, asked(seed=3)))


def test_another_seed_gives_other_scores_only_where_something_is_drawn(method: Method) -> None:
    one, other = (run_method(method, asked(seed=seed)) for seed in (0, 1))
    if claimed("the seed changes the scores", method):
        assert not torch.equal(one, other)
    else:  # pairs come in another order: float64 sums, scores in float32
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_stopped_after_any_step_it_resumes_to_the_same_bits(method: Method) -> None:
    """The state goes through a file and into a new question, as in another process."""
    kept: list[bytes] = []
    whole = run_method(method, asked(seed=1), lambda step, steps, state: kept.append(saved(state)))
    some = sorted({1, len(kept) // 2, len(kept) - 1, len(kept)} - {0})
    for done in some:
        state = torch.load(io.BytesIO(kept[done - 1]), weights_only=True)
        assert torch.equal(run_method(method, asked(seed=1), resume=(done, state)), whole)


def saved(state: State) -> bytes:
    assert all(type(name) is str and type(tensor) is Tensor for name, tensor in state.items())
    assert not [name for name, tensor in state.items() if tensor.requires_grad]
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_an_interrupt_stops_it_and_a_step_leaves_the_state_before_it_alone(method: Method) -> None:
    question, states = asked(), list[State]()

    def stop(step: int, steps: int, state: State) -> None:
        states.append(state)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_method(method, question, stop)
    before = copy.deepcopy(states[0])
    if method.steps(question) > 1:
        method.step(question, states[0], 1)
    assert states[0].keys() == before.keys()
    assert all(torch.equal(states[0][name], tensor) for name, tensor in before.items())


# The model is untouched -------------------------------------------------------------------------------------------


def looked_at(model: nn.Module) -> dict[str, Any]:
    """Everything that a method could leave changed."""
    hooks = [
        len(getattr(module, kind))
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    ]
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "methods": [sorted(vars(module)) for module in model.modules()],
        "torch": (torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()),
        # not Python's own generator: beartype, which checks annotations in tests, draws from it
        "numpy": [str(part) for part in np.random.get_state(legacy=True)],  # noqa: NPY002
    }


def test_the_model_and_the_callers_generators_are_untouched(method: Method) -> None:
    wiring, task = tiny()
    before = looked_at(wiring.model)
    run_method(method, ask(wiring, task, seed=2, batch_size=4))
    after = looked_at(wiring.model)
    assert all(torch.equal(after["weights"].pop(name), tensor) for name, tensor in before.pop("weights").items())
    assert torch.equal(before["torch"][0], after["torch"][0])
    for name in ("gradients", "modes", "hooks", "methods", "numpy"):
        assert before[name] == after[name], name
    assert before["torch"][1:] == after["torch"][1:]


# It finds what is there -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> Callable[[str], Question]:
    """``previous_token`` resampled: of 13 edges two are necessary, what the head's values read and what it writes."""
    made = compiled(program("previous_token"))
    made = replace(made, inputs=made.inputs[::8], outputs=made.outputs[::8])
    wiring, setting = wiring_of(made).wiring, setting_of(made, Asked("resample"))
    return lambda objective: known_question(made, wiring, setting, objective, batch_size=31)


def test_a_planted_edge_outranks_the_dead_ones(method: Method, planted: Callable[[str], Question]) -> None:
    follows = claimed("a metric without a gradient is refused", method) and method.name not in LONG_ENOUGH
    question = planted("projection" if follows or method.name == "ensemble" else "distance")
    values = run_method(method_named(method.name, LONG_ENOUGH.get(method.name)), question).abs()
    truth = torch.tensor([name in ("input.tok -> a0.h0<v>", "a0.h0 -> logits") for name in question.wiring.edges.names])
    assert int(truth.sum()) == 2
    found = bool(values[truth].min() > values[~truth].max())
    assert found != claimed("a planted edge does not outrank the others", method)


# What cannot be asked is an error of ours --------------------------------------------------------------------------


def _says_the_same(outputs: Tensor, pairs: Pairs, full: Tensor) -> Tensor:
    """1 where the likeliest token is the full model's: a step function, and the full model does best."""
    return (outputs[:, -1].argmax(-1) == full[:, -1].argmax(-1)).double()


@pytest.mark.parametrize(
    ("metric", "claim"),
    [
        (metric_named("kl"), "kl is refused"),
        (
            metric_of("stairs", _says_the_same, needs_full=True),
            "a metric without a gradient is refused",
        ),
    ],
    ids=["kl", "stairs"],
)
def test_metrics_that_cannot_be_followed_are_refused(method: Method, metric: Metric, claim: str) -> None:
    wiring, task = tiny(metric=metric)
    if metric.name == "stairs":  # no answers: nothing that kl could compare instead
        pairs = Pairs.of(task.train.clean, task.train.corrupted)
        task = Task("tiny", pairs, pairs, metric)
    if claimed(claim, method):
        with pytest.raises(MetricError):
            run_method(method, ask(wiring, task, batch_size=4))
    else:
        assert bool(run_method(method, ask(wiring, task, batch_size=4)).isfinite().all())


def test_a_metric_that_is_not_finite_is_an_error_or_never_looked_at(method: Method) -> None:
    broken = metric_of("broken", lambda outputs, pairs: outputs[:, -1, 0] * torch.nan)
    wiring, task = tiny()
    pairs = Pairs.of(task.train.clean, task.train.corrupted)
    question = ask(wiring, Task("tiny", pairs, pairs, broken), batch_size=4)
    if method.name in ("magnitude", "prune-only", "random"):
        assert bool(run_method(method, question).isfinite().all())
    else:
        with pytest.raises(VoltmeterError, match="broken"):
            run_method(method, question)


# Another device ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_what_the_cpu_gives(method: Method) -> None:
    here = run_method(method, asked())
    there = run_method(method, asked(device="cuda"))
    # float64 sums in another order, over learning steps that divide by small numbers; scores in float32
    assert torch.allclose(here, there, rtol=1e-4, atol=1e-6 * float(here.abs().max()))

"""Metrics against loops that are too simple to be wrong, on every kind of output; and what they refuse."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voltmeter.errors import MetricError
from voltmeter.task.metric import (
    ACCURACY,
    KL,
    LOG_PROBABILITY,
    LOGIT_DIFFERENCE,
    METRICS,
    logits_of,
    metric_named,
    metric_of,
    require_not_constant,
)
from voltmeter.task.pairs import Pairs

VOCABULARY = 7


def pairs_of(answers: list[list[int]], wrong: list[list[int]], lengths: list[int]) -> Pairs:
    clean = [[1] * length for length in lengths]
    return Pairs.from_tokens(clean, [[*row[:-1], 2] for row in clean], answers, wrong)


some = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3, unique=True)
rows = st.lists(st.tuples(some, some, st.integers(1, 4)), min_size=1, max_size=4)  # answers, wrong, length


def build(rows: list[tuple[list[int], list[int], int]], seed: int) -> tuple[Pairs, Tensor, Tensor]:
    """Pairs with answers and wrong answers of any number, and the logits of two models on them."""
    answers, wrong, lengths = (list(column) for column in zip(*rows, strict=True))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), max(lengths), VOCABULARY)
    here, full = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return pairs_of(answers, wrong, lengths), here, full


def logs(row: list[float]) -> list[float]:
    """The log-probabilities of one row of logits."""
    total = math.log(sum(map(math.exp, row)))
    return [value - total for value in row]


def naive(name: str, pairs: Pairs, logits: Tensor, full: Tensor) -> list[float]:
    values = []
    for i in range(len(pairs)):
        row, there = (tensor[i, int(pairs.position[i])].tolist() for tensor in (logits, full))
        right, wrong = ([t for t in tokens[i].tolist() if t >= 0] for tokens in (pairs.answers, pairs.wrong))
        match name:
            case "logit-difference":
                value = sum(row[t] for t in right) / len(right) - sum(row[t] for t in wrong) / len(wrong)
            case "log-probability":
                value = math.log(sum(math.exp(logs(row)[t]) for t in right))
            case "accuracy":
                value = float(max(row[t] for t in right) > max(row[t] for t in wrong))
            case "kl":
                value = -sum(math.exp(p) * (p - q) for p, q in zip(logs(there), logs(row), strict=True))
        values.append(value)
    return values


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=40)
@given(rows, st.integers(0, 999))
def test_metrics_are_what_the_loops_say(name: str, rows: Any, seed: int) -> None:
    pairs, logits, full = build(rows, seed)
    values = metric_named(name)(logits, pairs, full=full)
    assert values.tolist() == pytest.approx(naive(name, pairs, logits, full), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=40)
@given(rows, st.integers(0, 999))
def test_a_pair_has_its_number_in_every_batch(name: str, rows: Any, seed: int) -> None:
    pairs, logits, full = build(rows, seed)
    whole = metric_named(name)(logits, pairs, full=full)
    for i in range(len(pairs)):
        alone = pairs.batch([i])
        length = alone.n_positions
        value = metric_named(name)(logits[i : i + 1, :length], alone, full=full[i : i + 1, :length])
        torch.testing.assert_close(value, whole[i : i + 1])


def test_accuracy_without_wrong_answers_asks_the_whole_vocabulary() -> None:
    logits = torch.tensor([[[1.0, 3.0, 2.0]], [[1.0, 3.0, 4.0]]])
    assert ACCURACY(logits, pairs_of([[0, 1], [0, 1]], [[], []], [1, 1])).tolist() == [1.0, 0.0]
    assert ACCURACY(logits, pairs_of([[0, 1], [0, 1]], [[2], []], [1, 1])).tolist() == [1.0, 0.0]
    assert ACCURACY(logits, pairs_of([[0, 1], [0, 1]], [[], [0]], [1, 1])).tolist() == [1.0, 1.0]


def test_a_tie_is_not_right() -> None:
    assert ACCURACY(torch.zeros(1, 1, 3), pairs_of([[0]], [[1]], [1])).tolist() == [0.0]


def test_kl_is_zero_to_itself_and_negative_to_others() -> None:
    pairs, logits = pairs_of([[0]], [[1]], [2]), torch.randn(1, 2, VOCABULARY)
    assert KL(logits, pairs, full=logits).tolist() == [0.0]
    assert KL(logits, pairs, full=torch.randn(1, 2, VOCABULARY)).item() < 0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_gradients_flow_and_half_precision_is_measured_in_float32(metric: Any) -> None:
    logits = torch.randn(2, 3, VOCABULARY, dtype=torch.bfloat16, requires_grad=True)
    values = metric(logits, pairs_of([[0], [1]], [[2], [3]], [2, 3]), full=torch.randn(2, 3, VOCABULARY))
    assert values.dtype == torch.float32
    if metric is not ACCURACY:
        values.sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().sum() > 0


# --- sequences --------------------------------------------------------------------------------------


def sequences() -> tuple[Pairs, Tensor]:
    """Two prompts of two tokens; their answers, of three tokens and one, are fed in but for the last token."""
    clean, answers = [[1, 2, 3, 4], [1, 2]], torch.tensor([[[3, 4, 5]], [[6, -1, -1]]])
    single = Pairs.from_tokens(clean, [[0, *row[1:]] for row in clean], position=[1, 1])
    return replace(single, answers=answers), torch.randn(2, 4, VOCABULARY, dtype=torch.float64)


def test_the_log_probability_of_a_sequence_is_the_sum_over_its_tokens() -> None:
    pairs, logits = sequences()
    first = sum(logs(logits[0, 1 + t].tolist())[token] for t, token in enumerate([3, 4, 5]))
    second = logs(logits[1, 1].tolist())[6]
    assert LOG_PROBABILITY(logits, pairs).tolist() == pytest.approx([first, second])


def test_a_sequence_is_right_if_every_token_is_first_choice() -> None:
    pairs, logits = sequences()
    for t, token in enumerate([3, 4, 5]):
        logits[0, 1 + t, token] = 99
    logits[1, 1, 6] = 99
    assert ACCURACY(logits, pairs).tolist() == [1.0, 1.0]
    logits[0, 2, 0] = 100
    assert ACCURACY(logits, pairs).tolist() == [0.0, 1.0]


def test_the_kl_of_a_sequence_is_the_sum_over_its_tokens() -> None:
    pairs, logits = sequences()
    full = torch.randn_like(logits)
    by_token = (full.log_softmax(2).exp() * (full.log_softmax(2) - logits.log_softmax(2))).sum(2)
    expected = [-by_token[0, 1:4].sum().item(), -by_token[1, 1].item()]
    assert KL(logits, pairs, full=full).tolist() == pytest.approx(expected)


def test_a_logit_difference_of_sequences_is_refused() -> None:
    pairs, logits = sequences()
    pairs = replace(pairs, wrong=torch.tensor([[1], [1]]))
    with pytest.raises(MetricError) as error:
        LOGIT_DIFFERENCE(logits, pairs)
    assert str(error.value).split("\n  ") == [
        "logit-difference compares single tokens, the answers here are sequences of up to 3",
        "use log-probability, or compare at the token where answers part: long_answers='branch'",
    ]


# --- outputs ----------------------------------------------------------------------------------------

LOGITS = torch.zeros(1, 1, 3)


@pytest.mark.parametrize(
    "outputs",
    [LOGITS, {"logits": LOGITS, "loss": 1}, SimpleNamespace(logits=LOGITS), (LOGITS, None), [LOGITS]],
    ids=["tensor", "dict", "attribute", "tuple", "list"],
)
def test_logits_are_found(outputs: object) -> None:
    assert logits_of(outputs) is LOGITS


@pytest.mark.parametrize("outputs", [{"loss": LOGITS}, None, (), ("x",), torch.tensor([1]), SimpleNamespace()])
def test_outputs_without_logits_are_refused(outputs: object) -> None:
    with pytest.raises(MetricError, match=rf"the model returned a {type(outputs).__name__} in which no logits were"):
        logits_of(outputs)


def test_one_row_of_logits_a_pair_needs_no_position() -> None:
    pairs = Pairs.of(torch.zeros(2, 4), torch.ones(2, 4), answers=[0, 1], wrong=[1, 0])
    assert LOGIT_DIFFERENCE(torch.tensor([[3.0, 1.0], [3.0, 1.0]]), pairs).tolist() == [2.0, -2.0]


def test_the_last_position_alone_will_do_where_all_answers_are_there() -> None:
    last = torch.randn(2, 1, VOCABULARY)
    equal = pairs_of([[0], [0]], [[1], [1]], [3, 3])
    torch.testing.assert_close(LOGIT_DIFFERENCE(last, equal), last[:, 0, 0] - last[:, 0, 1])
    with pytest.raises(MetricError, match="the logits have 1 positions, the answers are at positions up to 2"):
        LOGIT_DIFFERENCE(last, pairs_of([[0], [0]], [[1], [1]], [3, 2]))


def test_logits_of_other_shapes_are_refused() -> None:
    pairs = pairs_of([[0]], [[1]], [2])
    with pytest.raises(MetricError, match=r"the logits have shape \[2, 2, 3\] for 1 pair"):
        LOGIT_DIFFERENCE(torch.zeros(2, 2, 3), pairs)
    with pytest.raises(MetricError, match=r"the logits have shape \[1, 2, 3, 4\] for 1 pair"):
        LOGIT_DIFFERENCE(torch.zeros(1, 2, 3, 4), pairs)
    with pytest.raises(MetricError, match="answer 9 is not among the 3 logits of the model"):
        LOGIT_DIFFERENCE(torch.zeros(1, 2, 3), pairs_of([[9]], [[1]], [2]))


# --- what is refused --------------------------------------------------------------------------------


def test_values_that_are_not_finite_name_their_rows() -> None:
    pairs = Pairs.from_tokens([[1]] * 3, [[2]] * 3, rows=[17, 52, 60])
    broken = metric_of("mine", lambda outputs, pairs: torch.tensor([1.0, float("nan"), float("inf")]))
    with pytest.raises(MetricError) as error:
        broken(LOGITS, pairs)
    assert str(error.value).split("\n  ") == [
        "mine is not finite on 2 of 3 pairs",
        "row 52: nan",
        "row 60: inf",
        "look at these rows: the model's logits there, or the metric itself, overflow or are NaN",
    ]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.tensor(1.0), r"mine returned torch.float32 \[\], one real number for each pair \(1\)"),
        (torch.tensor([1]), r"mine returned torch.int64 \[1\]"),
        (1.0, "mine returned float"),
    ],
)
def test_values_that_are_not_one_a_pair(returned: Any, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        metric_of("mine", lambda outputs, pairs: returned)(LOGITS, pairs_of([[0]], [[1]], [1]))


def test_a_metric_of_your_own_sees_outputs_pairs_and_if_it_asks_the_full_model() -> None:
    pairs = Pairs.of((torch.zeros(2, 1),), (torch.ones(2, 1),))
    distance = metric_of("distance", lambda outputs, pairs, full: -(outputs - full).abs().sum(1), needs_full=True)
    assert distance(torch.zeros(2, 3), pairs, full=torch.ones(2, 3)).tolist() == [-3.0, -3.0]
    assert metric_of("sum", lambda outputs, pairs: outputs.sum(1))(torch.ones(2, 3), pairs).tolist() == [3.0, 3.0]


def test_what_a_metric_needs_must_be_there() -> None:
    none = pairs_of([[0], [0]], [[1], []], [1, 1])
    with pytest.raises(MetricError) as error:
        LOGIT_DIFFERENCE(torch.zeros(2, 1, 3), none)
    assert error.value.problem == "logit-difference needs wrong answers, and 1 of 2 pairs has none"
    assert error.value.details == ("row 2",)
    with pytest.raises(MetricError, match="log-probability needs answers, and 1 of 1 pair has none"):
        LOG_PROBABILITY(torch.zeros(1, 1, 3), pairs_of([], [], [1]))
    with pytest.raises(MetricError, match="kl compares with the full model, and its outputs were not given"):
        KL(torch.zeros(2, 1, 3), none)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(MetricError) as error:
        metric_named("logit_diff")
    assert str(error.value).startswith("there is no metric 'logit_diff'\n  nearest: logit-difference")


def test_a_constant_metric_is_refused() -> None:
    values = torch.tensor([1.0, -1000.0])
    with pytest.raises(MetricError) as error:
        require_not_constant("accuracy", values, values + 1e-5)
    assert str(error.value).split("\n  ")[:2] == [
        "accuracy is the same for the full model and for nothing kept on all 2 pairs",
        "both give -499.5 on average",
    ]
    require_not_constant("accuracy", values, values + torch.tensor([0.0, 0.1]))


def test_where_the_answer_is_read_is_never_guessed() -> None:
    """Vectors in place of tokens: their first position is not the last, and was once taken."""
    vectors, others, logits = torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.randn(2, 3, VOCABULARY)
    pairs = Pairs.of(vectors, others, answers=[0, 1], wrong=[2, 3])
    with pytest.raises(MetricError) as error:
        LOGIT_DIFFERENCE(logits, pairs)
    assert str(error.value) == (
        "the logits have 3 positions, and nothing says at which of them the answer is read\n"
        "  the inputs are no tokens, so that no position is the last: give Pairs.of(..., position=...)"
    )
    given = Pairs.of(vectors, others, answers=[0, 1], wrong=[2, 3], position=[2, 1])
    expected = torch.stack([logits[0, 2, 0] - logits[0, 2, 2], logits[1, 1, 1] - logits[1, 1, 3]])
    assert torch.equal(LOGIT_DIFFERENCE(logits, given), expected)
    assert torch.equal(LOGIT_DIFFERENCE(logits[:, 0], pairs), logits[[0, 1], 0, [0, 1]] - logits[[0, 1], 0, [2, 3]])

"""Pairs hold what they say, whatever the inputs are, and refuse what cannot be right."""

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voltmeter.errors import TaskError
from voltmeter.task.pairs import Pairs
from voltmeter.task.tree import call, map_tensors, named_tensors

Board = namedtuple("Board", ["stones", "globals"])


def tokens(n: int = 3, longest: int = 5, **more: object) -> Pairs:
    """n pairs of falling length, whose corrupted twin differs at position 1."""
    clean = [list(range(10 * i + 10, 10 * i + 10 + longest - i)) for i in range(n)]
    corrupted = [[row[0], 7, *row[2:]] for row in clean]
    answers, wrong = [[i + 1] for i in range(n)], [[i + 2, i + 3] for i in range(n)]
    return Pairs.from_tokens(clean, corrupted, answers, wrong, **more)  # type: ignore[arg-type]


def test_rows_of_tokens_are_padded_on_the_right() -> None:
    pairs = tokens()
    assert pairs.clean["input_ids"].tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 23, 0], [30, 31, 32, 0, 0]]
    assert pairs.clean["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert pairs.position.tolist() == [4, 3, 2]
    assert pairs.spans == ((1, 1), (1, 1), (1, 1))
    assert pairs.answers.tolist() == [[1], [2], [3]]
    assert pairs.rows == (1, 2, 3)
    assert len(pairs) == 3
    assert repr(pairs) == "Pairs(3 pairs in 3 groups)"


def test_answers_are_padded_with_minus_one() -> None:
    pairs = Pairs.from_tokens([[1, 2], [3, 4]], [[1, 9], [3, 9]], answers=[[5], [6, 7]])
    assert pairs.answers.tolist() == [[5, -1], [6, 7]]
    assert pairs.wrong.shape == (2, 0)


def test_a_batch_keeps_rows_and_drops_columns_that_are_all_padding() -> None:
    batch = tokens(groups=["a", "a", "b"], rows=[4, 5, 9]).batch([2, 1])
    assert batch.clean["input_ids"].tolist() == [[30, 31, 32, 0], [20, 21, 22, 23]]
    assert batch.corrupted["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert (batch.rows, batch.groups, batch.position.tolist()) == ((9, 5), ("b", "a"), [2, 3])


def test_batches_are_all_pairs_in_order() -> None:
    pairs = tokens(5, longest=8)
    assert [batch.rows for batch in pairs.batches(2)] == [(1, 2), (3, 4), (5,)]
    assert len(list(pairs.batches(99))) == 1


@pytest.mark.parametrize("indices", [[3], [-4], [[0, 1]]])
def test_indices_outside_are_refused(indices: list[int]) -> None:
    with pytest.raises(TaskError, match="these are no indices of 3 pairs"):
        tokens().batch(torch.tensor(indices))


def test_a_batch_of_no_pairs_is_refused() -> None:
    with pytest.raises(TaskError, match="a batch of 0 pairs was asked for"):
        list(tokens().batches(0))


def test_inputs_may_be_any_pytree() -> None:
    clean = (Board(torch.zeros(4, 2, 2), torch.arange(4.0)), {"seen": torch.ones(4, 1)}, [torch.zeros(4)], None, "x")
    corrupted = map_tensors(clean, lambda tensor: tensor + 1)
    pairs = Pairs.of(clean, corrupted, answers=[0, 1, 2, 3])
    board, seen, rest, nothing, word = pairs.batch([3, 1]).clean
    assert isinstance(board, Board)
    assert board.globals.tolist() == [3.0, 1.0]
    assert (seen["seen"].shape, rest[0].shape, nothing, word) == ((2, 1), (2,), None, "x")
    assert pairs.spans == (None,) * 4
    assert pairs.groups == ("pair 1", "pair 2", "pair 3", "pair 4")


def test_a_tensor_of_tokens_has_positions() -> None:
    pairs = Pairs.of(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 5, 6]]))
    assert (pairs.position.tolist(), pairs.spans, pairs.n_positions) == ([2], ((1, 2),), 3)
    others = Pairs.of(torch.zeros(1, 3, 4), torch.ones(1, 3, 4))
    assert (others.n_positions, others.position.tolist()) == (None, [-1]), "which of its axes are positions?"


@pytest.mark.parametrize(
    ("inputs", "seen"),
    [(torch.ones(2), ((2,), {})), ((torch.ones(2), 3), ((2,), {})), ({"x": torch.ones(2)}, ((), {"x": (2,)}))],
)
def test_models_are_called_by_the_kind_of_inputs(inputs: object, seen: object) -> None:
    def model(*args: object, **kwargs: object) -> object:
        shape = lambda value: tuple(value.shape) if isinstance(value, torch.Tensor) else value  # noqa: E731
        return (shape(args[0]) if args else ()), {key: shape(value) for key, value in kwargs.items()}

    assert call(model, inputs) == seen


def test_digests_see_every_change_and_no_padding() -> None:
    pairs = tokens()
    assert pairs.digest == tokens().digest
    assert len({pairs.digest, tokens(groups=["a", "b", "c"]).digest, tokens(longest=6).digest}) == 3
    assert pairs.pair_digests()[1:] == pairs.batch([1, 2]).pair_digests(), "however far a row is padded"
    turned = Pairs.of(pairs.corrupted, pairs.clean, pairs.answers, pairs.wrong)
    assert turned.pair_digests() == pairs.pair_digests(), "whichever way round"
    assert turned.digest != pairs.digest


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_any_batch_reads_as_its_rows(lengths: list[int], data: st.DataObject) -> None:
    clean = [[data.draw(st.integers(1, 9)) for _ in range(length)] for length in lengths]
    corrupted = [[*row[:-1], row[-1] + 10] for row in clean]
    pairs = Pairs.from_tokens(clean, corrupted)
    chosen = data.draw(st.lists(st.integers(0, len(clean) - 1), min_size=1))
    batch = pairs.batch(chosen)
    for side, rows in ((batch.clean, clean), (batch.corrupted, corrupted)):
        masks = side["attention_mask"].bool()
        assert [ids[mask].tolist() for ids, mask in zip(side["input_ids"], masks, strict=True)] == [
            rows[i] for i in chosen
        ]
        assert side["input_ids"].shape[1] == max(lengths[i] for i in chosen)


# --- what cannot be right ---------------------------------------------------------------------------


def test_clean_and_corrupted_of_other_shapes() -> None:
    with pytest.raises(TaskError) as error:
        Pairs.of({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, {"a": torch.ones(2, 4), "c": torch.ones(2)})
    assert str(error.value).split("\n  ") == [
        "clean and corrupted inputs are not of one shape",
        "['a']: clean [2, 3], corrupted [2, 4]",
        "['b']: clean [2], corrupted has none",
        "['c']: clean has none, corrupted [2]",
        "give the same tensors in the same shapes on both sides",
    ]


def test_tensors_that_disagree_on_the_number_of_examples() -> None:
    with pytest.raises(TaskError) as error:
        Pairs.of((torch.zeros(2, 3), torch.zeros(3)), (torch.ones(2, 3), torch.ones(3)))
    assert error.value.problem == "the clean inputs do not agree on the number of examples"
    assert error.value.details == ("[0] has shape [2, 3]", "[1] has shape [3]")


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"x": [object()]}, "the inputs hold a object at ['x'][0]"),
        ({"use_cache": False}, "the clean inputs hold no tensor"),
        (torch.tensor(1.0), "the clean inputs do not agree on the number of examples"),
    ],
)
def test_inputs_that_are_none(inputs: object, problem: str) -> None:
    with pytest.raises(TaskError) as error:
        Pairs.of(inputs, inputs)
    assert error.value.problem == problem


def test_pairs_that_are_the_same_on_both_sides() -> None:
    with pytest.raises(TaskError) as error:
        Pairs.of(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 5], [3, 4]]))
    assert error.value.problem == "clean and corrupted are the same in 1 of 2 pairs"
    assert error.value.details == ("row 2",)


def test_other_padding_on_the_other_side() -> None:
    ids, mask = torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 0]])
    with pytest.raises(TaskError) as error:
        Pairs.of(
            {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids + 1, "attention_mask": torch.ones_like(mask)}
        )
    assert error.value.problem == "clean and corrupted are padded differently in 1 of 1 pair"
    assert error.value.details == ("row 1: 2 tokens clean, 3 corrupted",)


@pytest.mark.parametrize("position", [-1, 2, 3])
def test_positions_that_hold_no_token(position: int) -> None:
    with pytest.raises(TaskError) as error:
        Pairs.from_tokens([[1, 2], [1, 2, 3]], [[1, 5], [1, 5, 3]], position=[position, 0])
    assert error.value.problem == "the position of the answer is no real token in 1 of 2 pairs"
    assert error.value.details == (f"row 1: position {position}, the row has 2 tokens",)


def test_numbers_of_pairs_that_disagree() -> None:
    with pytest.raises(TaskError) as error:
        Pairs.of(torch.zeros(2, 1), torch.ones(2, 1), answers=[1, 2, 3], groups=["a"])
    assert error.value.details == ("answers: 3", "groups: 1")


def test_rows_of_unequal_length() -> None:
    with pytest.raises(TaskError) as error:
        Pairs.from_tokens([[1, 2], [1, 2, 3]], [[1, 5], [1, 5]])
    assert error.value.problem == "1 of 2 pairs is not equally long"
    assert error.value.details == ("row 2: 3 tokens, 2",)
    with pytest.raises(TaskError, match="1 clean row was given, but 2 corrupted"):
        Pairs.from_tokens([[1]], [[1], [2]])
    with pytest.raises(TaskError, match="the rows are 1 to 2 tokens long, and without a mask there is no padding"):
        Pairs.from_tokens([[1], [1, 2]], [[3], [3, 2]], as_dict=False)


def test_without_a_mask_inputs_are_the_tensor() -> None:
    pairs = Pairs.from_tokens([[1, 2], [3, 4]], [[1, 5], [3, 5]], as_dict=False)
    assert [name for name, _ in named_tensors(pairs.clean)] == [""]
    assert pairs.batch([1]).corrupted.tolist() == [[3, 5]]


def test_no_pairs_are_pairs() -> None:
    assert len(tokens().batch([])) == 0
    assert len(Pairs.from_tokens([], [])) == 0

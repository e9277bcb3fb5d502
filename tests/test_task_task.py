"""A task keeps its splits apart; a file becomes one; and the gate says whether a model does it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_words import Pieces
from torch import Tensor

import voltmeter.task as room
from voltmeter.errors import MetricError, TaskError
from voltmeter.task.gate import gate
from voltmeter.task.metric import KL, LOG_PROBABILITY, LOGIT_DIFFERENCE, Metric, metric_of
from voltmeter.task.pairs import Pairs
from voltmeter.task.sets import task_names, task_set
from voltmeter.task.task import Task, from_file


def some_pairs(first: int, count: int = 2, groups: list[str] | None = None) -> Pairs:
    clean = [[1, first + i] for i in range(count)]
    other = [[2, first + i] for i in range(count)]
    names = groups or [f"group {first + i}" for i in range(count)]
    return Pairs.from_tokens(clean, other, [[0]] * count, [[1]] * count, groups=names)


# --- Task -------------------------------------------------------------------------------------------


def test_a_task_has_an_example_of_two_rows_a_name_and_a_digest() -> None:
    task = Task("mine", some_pairs(10, 3), some_pairs(20))
    assert task.example["input_ids"].tolist() == [[1, 10], [1, 11]]
    assert Task("one", some_pairs(10, 1), some_pairs(20)).example["input_ids"].tolist() == [[1, 10], [1, 10]]
    assert repr(task) == "Task(mine: 3 train, 2 held-out pairs, logit-difference)"
    others = [Task("other", task.train, task.held_out), Task("mine", task.train, task.held_out, KL)]
    assert len({task.digest, *(other.digest for other in others)}) == 3
    assert task.digest == Task("mine", some_pairs(10, 3), some_pairs(20)).digest


def test_empty_splits_are_refused() -> None:
    with pytest.raises(TaskError, match="the task mine is empty: it holds no train pairs"):
        Task("mine", some_pairs(10, 0), some_pairs(20))
    with pytest.raises(TaskError, match="the task mine is empty: it holds no held-out pairs"):
        Task("mine", some_pairs(10), some_pairs(20, 0))


def test_a_metric_without_its_answers_is_refused() -> None:
    bare = Pairs.from_tokens([[1], [2]], [[3], [4]])
    with pytest.raises(MetricError, match="logit-difference needs answers, and 2 of 2 pairs have none"):
        Task("mine", bare, some_pairs(20))
    Task("mine", bare, some_pairs(20), KL)


def test_groups_in_both_splits_are_refused() -> None:
    with pytest.raises(TaskError) as error:
        Task("mine", some_pairs(10, 2, ["a", "b"]), some_pairs(20, 2, ["b", "c"]))
    assert error.value.problem == "1 group of pairs is both train and held out"
    assert error.value.details == ("'b'",)


def test_a_pair_in_both_splits_is_found_in_either_direction_and_under_other_padding() -> None:
    train = Pairs.from_tokens([[1, 2], [1, 2, 3, 4]], [[5, 2], [6, 2, 3, 4]], [[0]] * 2, [[1]] * 2)
    held = Pairs.from_tokens([[5, 2], [7, 2]], [[1, 2], [8, 2]], [[0]] * 2, [[1]] * 2, groups=["x", "y"])
    with pytest.raises(TaskError) as error:
        Task("mine", train, held)
    assert error.value.problem == "1 held-out pair is a train pair too, in one direction or the other"
    assert error.value.details == ("held-out row 1",)


def test_a_question_with_every_input_in_it_is_its_own_held_out_split() -> None:
    pairs = some_pairs(10)
    assert Task("all", pairs, pairs).held_out is pairs


# --- from_file --------------------------------------------------------------------------------------


def lines(tmp_path: Path, records: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    return tmp_path / name


def record(i: int, **more: Any) -> dict[str, Any]:
    return {"clean": [1, 10 + i], "corrupted": [2, 10 + i], "answers": [3], "wrong": [4], **more}


def test_groups_are_held_out_whole(tmp_path: Path) -> None:
    path = lines(tmp_path, [record(i, group=f"g{i % 4}") for i in range(12)])
    task = from_file(path, held_out=0.25, seed=1)
    assert (len(task.train), len(task.held_out), task.name) == (9, 3, "pairs")
    assert len(set(task.held_out.groups)) == 1
    assert task.how["split"] == "0.25 of the groups, as the file names them"
    assert from_file(path, held_out=0.25, seed=1).digest == task.digest
    assert len({from_file(path, held_out=0.25, seed=seed).digest for seed in range(6)}) > 1


@settings(max_examples=40)
@given(st.integers(2, 9), st.floats(0.01, 0.99), st.integers(0, 9))
def test_both_directions_of_a_pair_are_on_one_side(count: int, share: float, seed: int) -> None:
    both = [turned for i in range(count) for turned in (record(i), record(i, clean=[2, 10 + i], corrupted=[1, 10 + i]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("voltmeter.task.formats.read_bytes", lambda path: "\n".join(map(json.dumps, both)).encode())
        patch.setattr("voltmeter.task.task.digest_file", lambda path: "")
        task = from_file("pairs.jsonl", held_out=share, seed=seed)
    assert len(task.train) + len(task.held_out) == 2 * count
    assert not set(task.train.pair_digests()) & set(task.held_out.pair_digests())
    assert "which the file does not name" in task.how["split"]


def test_the_file_may_say_what_is_held_out(tmp_path: Path) -> None:
    task = from_file(lines(tmp_path, [record(i, split=("train", "held_out")[i > 0]) for i in range(3)]))
    assert (task.train.rows, task.held_out.rows) == ((1,), (2, 3))
    with pytest.raises(TaskError) as error:
        from_file(lines(tmp_path, [record(0, split="train"), record(1), record(2, split="test")]))
    assert error.value.problem == "2 of 3 rows name no split"
    assert error.value.details == ("row 2: None", "row 3: 'test'")


def test_another_file_may_be_held_out(tmp_path: Path) -> None:
    path = lines(tmp_path, [record(i, group=f"a{i}") for i in range(3)])
    other = lines(tmp_path, [record(i, group=f"b{i}") for i in range(3, 5)], "other.jsonl")
    task = from_file(path, held_out=other)
    assert (len(task.train), len(task.held_out)) == (3, 2)
    assert str(other) in task.how["split"]
    with pytest.raises(TaskError, match="3 groups of pairs are both train and held out"):
        from_file(path, held_out=path)


def test_rows_of_two_files_that_name_no_groups_are_no_groups_together(tmp_path: Path) -> None:
    path = lines(tmp_path, [record(i) for i in range(3)])
    task = from_file(path, held_out=lines(tmp_path, [record(i) for i in range(3, 5)], "other.jsonl"))
    assert task.train.groups == ("row 1", "row 2", "row 3")
    assert task.held_out.groups == ("held-out row 1", "held-out row 2")
    with pytest.raises(TaskError, match="3 held-out pairs are train pairs too"):
        from_file(path, held_out=path)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (3, 0.0), (3, 1.0), (3, 2)])
def test_what_cannot_be_held_out(tmp_path: Path, count: int, share: float) -> None:
    with pytest.raises(TaskError, match=rf"{share:.0%} of {count} groups? of pairs cannot be held out"):
        from_file(lines(tmp_path, [record(i) for i in range(count)]), held_out=share)


@pytest.mark.parametrize(
    ("more", "metric", "chosen"),
    [
        ({}, None, LOGIT_DIFFERENCE),
        ({"wrong": []}, None, LOG_PROBABILITY),
        ({"wrong": [], "answers": []}, None, KL),
        ({}, "log-probability", LOG_PROBABILITY),
        ({}, KL, KL),
    ],
)
def test_the_metric_is_given_or_fits_the_answers(
    tmp_path: Path, more: dict[str, Any], metric: Any, chosen: Metric
) -> None:
    path = lines(tmp_path, [record(i, **more) for i in range(2)])
    assert from_file(path, metric=metric).metric is chosen


def test_texts_are_read_with_a_tokenizer_and_misaligned_ones_dropped(tmp_path: Path) -> None:
    texts = [("Tim ran", "Amy ran"), ("Tim sat", "Timothy sat"), ("Amy sat", "Sam sat")]
    path = lines(tmp_path, [{"clean": a, "corrupted": b, "answers": [" off"], "wrong": [" Timothy"]} for a, b in texts])
    with pytest.raises(TaskError, match="1 of 3 pairs does not line up\n  row 2: 'Tim' is 1 token, 'Timothy' is 3"):
        from_file(path, Pieces())
    task = from_file(path, Pieces(), drop_misaligned=True, long_answers="branch")
    assert task.how["dropped_rows"] == [2]
    assert {*task.train.rows, *task.held_out.rows} == {1, 3}
    sequence = from_file(path, Pieces(), drop_misaligned=True, long_answers="sequence")
    assert sequence.metric is LOG_PROBABILITY
    assert sequence.train.is_sequence


# --- gate -------------------------------------------------------------------------------------------


def table(answers: dict[int, int]) -> Callable[..., Tensor]:
    """A model that looks at the first token only: it prefers the token that ``answers`` names for it, by 4."""

    def model(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        chosen = torch.tensor([answers[int(row[0])] for row in input_ids])
        return 4.0 * torch.nn.functional.one_hot(chosen, 5)[:, None].expand(-1, input_ids.shape[1], -1)

    return model


def test_a_model_that_does_it() -> None:
    task = Task("mine", some_pairs(10), some_pairs(20, 4))
    does = gate(task, table({1: 0, 2: 1}), batch_size=3)
    assert str(does) == "the model does it: 100% right, logit difference 4.0"
    assert (does.does_it, does.right, does.clean, does.corrupted, does.n_pairs) == (True, 1.0, 4.0, -4.0, 4)
    assert gate(task, table({1: 0, 2: 1}), split="train").n_pairs == 2


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            {1: 1, 2: 0},
            "the model does not do it: 0% right (75% are wanted), logit difference -4.0 clean, 4.0 corrupted",
        ),
        (
            {1: 0, 2: 0},
            "the model does not do it: 100% right (75% are wanted), logit difference 4.0 clean, 4.0 corrupted",
        ),
    ],
    ids=["wrong", "right whatever it is given"],
)
def test_models_that_do_not_do_it(answers: dict[int, int], said: str) -> None:
    assert str(gate(Task("mine", some_pairs(10), some_pairs(20)), table(answers))) == said


def test_without_answers_right_is_to_tell_clean_from_corrupted() -> None:
    def board(first: int) -> Pairs:
        stones = torch.arange(first, first + 8.0).reshape(2, 2, 2)
        return Pairs.of((stones, torch.zeros(2)), (-stones, torch.zeros(2)), groups=[f"{first}", f"{first} b"])

    worth = metric_of("worth", lambda outputs, pairs: outputs["value"])
    task = Task("board", board(1), board(50), worth)
    assert str(gate(task, lambda stones, who: {"value": stones.sum((1, 2))})).startswith("the model does it: 100%")
    assert not gate(task, lambda stones, who: {"value": who}).does_it


def test_kl_is_measured_against_the_model_itself() -> None:
    bare = [Pairs.from_tokens([[1, i]], [[2, i]], groups=[f"{i}"]) for i in (10, 11)]
    found = gate(Task("mine", *bare, KL), table({1: 0, 2: 1}))
    assert (found.clean, found.right) == (0.0, 1.0)
    assert found.corrupted < -1


# --- sets -------------------------------------------------------------------------------------------


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(TaskError) as error:
        task_set("stories-pronouns")
    assert str(error.value).split("\n  ")[:2] == [
        "there is no task 'stories-pronouns'",
        "nearest: stories-pronoun, stories-name, stories-quote",
    ]


def test_stories_need_a_tokenizer_and_induction_does_not() -> None:
    for name in task_names():
        if name.startswith("stories"):
            with pytest.raises(TaskError, match=f"{name} is made of text, and no tokenizer was given"):
                task_set(name)(None, 0)
        else:
            assert task_set(name)(None, 0).name == name


def test_the_room_shows_what_it_says() -> None:
    assert sorted(room.__all__) == room.__all__
    assert [name for name in room.__all__ if getattr(room, name, None) is None] == []

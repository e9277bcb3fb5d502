"""Rows become pairs: answers found right after their prompt, long ones branched or fed in, groups kept together."""

import pytest
import torch
from task_words import Pieces

from voltmeter.errors import TaskError
from voltmeter.task.rows import LONG, Row, build_pairs, group_names
from voltmeter.task.tokens import Encoder


def encoder() -> Encoder:
    return Encoder(Pieces())


def spelled(pairs: torch.Tensor, by: Encoder) -> list[list[str]]:
    """Answers as texts."""
    return [[str(by.tokenizer.decode([token])) for token in row if token >= 0] for row in pairs.tolist()]


def test_texts_become_padded_tokens_and_the_last_one_answers() -> None:
    by = encoder()
    rows = [Row(4, "Tim ran to the", "Amy ran to the", (" cat",), (" dog", " sea")), Row(5, "Tim", "Amy", (" sat",))]
    pairs, dropped = build_pairs(rows, by)
    assert dropped == ()
    assert pairs.clean["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert pairs.clean["input_ids"][1, 2].item() == by.special("eos"), "what fills a row up is of no account"
    assert (pairs.position.tolist(), pairs.spans, pairs.rows) == ([4, 1], ((1, 1), (1, 1)), (4, 5))
    assert spelled(pairs.answers, by) == [[" cat"], [" sat"]]
    assert spelled(pairs.wrong, by) == [[" dog", " sea"], []]
    assert pairs.texts[0] == ("Tim ran to the", "Amy ran to the")


def test_positions_may_be_given_from_either_end_and_spans_declared() -> None:
    rows = [Row(1, "Tim ran off", "Amy ran off", position=1), Row(2, "Tim ran off", "Amy ran off", position=-2)]
    assert build_pairs(rows, encoder())[0].position.tolist() == [1, 2]
    with pytest.raises(TaskError, match="it changes at positions 1, but positions 2-3 are declared"):
        build_pairs([Row(1, "Tim ran off", "Amy ran off", span=(2, 3))], encoder())


def test_a_mask_in_the_text_is_where_the_answer_is_read() -> None:
    by = Encoder(Pieces(ends=True))
    pairs, _ = build_pairs([Row(1, "Tim<mask> off.", "Amy<mask> off.", (" ran",))], by)
    place = int(pairs.position[0])
    assert pairs.clean["input_ids"][0, place].item() == by.special("mask")
    assert pairs.clean["input_ids"][0, -1].item() == by.special("eos"), "the closing token stays where a mask is filled"
    assert spelled(pairs.answers, by) == [[" ran"]]


def test_rows_of_ids_need_no_tokenizer() -> None:
    pairs, _ = build_pairs([Row(1, (5, 6), (5, 7), (8,), ((9,),))], None, as_dict=False)
    assert (pairs.clean.tolist(), pairs.answers.tolist(), pairs.wrong.tolist()) == ([[5, 6]], [[8]], [[9]])
    with pytest.raises(TaskError, match="row 3 is text, and no tokenizer was given"):
        build_pairs([Row(3, "a", "b")], None)
    with pytest.raises(TaskError, match="row 3 has answers in text, and no tokenizer was given"):
        build_pairs([Row(3, (1,), (2,), ("a",))], None)


def test_no_rows_are_an_empty_task() -> None:
    with pytest.raises(TaskError, match="the task is empty: it holds no pairs"):
        build_pairs([], encoder())


def test_misaligned_rows_are_dropped_by_number() -> None:
    rows = [Row(1, "Tim", "Amy"), Row(2, "Tim", "Timothy"), Row(3, "Amy", "Sam")]
    pairs, dropped = build_pairs(rows, encoder(), drop_misaligned=True)
    assert (pairs.rows, dropped) == ((1, 3), (2,))


# --- answers ----------------------------------------------------------------------------------------


def test_answers_missing_from_the_vocabulary_are_all_listed() -> None:
    by = Encoder(Pieces(closed=["Tim", "Amy", " ran"]))
    rows = [Row(1, "Tim", "Amy", (" ran",), (" zip",)), Row(2, "Tim", "Amy", ((99,),), ()), Row(3, "Amy", "Tim", ("",))]
    with pytest.raises(TaskError) as error:
        build_pairs(rows, by)
    assert str(error.value).split("\n  ") == [
        "3 answers are missing from the vocabulary of 7 tokens",
        "row 1: '<unk>' (ids [2])",
        "row 2: '?' (ids [99])",
        "row 3: an answer has no tokens",
        "give answers that the tokenizer knows; mind the space that begins a word",
    ]


def test_answers_of_several_tokens_are_refused_unless_asked_for() -> None:
    with pytest.raises(TaskError) as error:
        build_pairs([Row(1, "Tim", "Amy", (" Timothy",), (" Sam",))], encoder())
    assert error.value.problem == "1 answer is not one token"
    assert error.value.details == ("row 1: 3 tokens, ' Tim' 'oth' 'y'",)
    assert "long_answers='branch'" in error.value.mend


def test_an_unknown_way_with_long_answers_lists_the_ways() -> None:
    with pytest.raises(TaskError) as error:
        build_pairs([Row(1, "Tim", "Amy")], encoder(), long_answers="cut")
    assert len(error.value.details) == len(LONG)


def test_branching_feeds_in_what_answers_share() -> None:
    by = encoder()
    rows = [
        Row(1, "I am", "U am", (" Timothy", " Timotle"), (" Timber",)),
        Row(2, "I am", "U am", (" Sam",), (" Tim",)),
    ]
    pairs, _ = build_pairs(rows, by, long_answers="branch")
    assert spelled(pairs.answers, by) == [["oth", "otl"], [" Sam"]]
    assert spelled(pairs.wrong, by) == [["ber"], [" Tim"]]
    assert by.tokenizer.decode(pairs.clean["input_ids"][0].tolist()) == "<bos>I am Tim"
    assert by.tokenizer.decode(pairs.corrupted["input_ids"][0].tolist()) == "<bos>U am Tim"
    assert pairs.position.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (" Timothy", " Tim", "' Tim'"),  # one begins the other
        (" Timothy", " Timothy", "'y'"),  # the same
    ],
)
def test_answers_that_never_part_are_refused(right: str, wrong: str, said: str) -> None:
    with pytest.raises(TaskError) as error:
        build_pairs([Row(8, "I am", "U am", (right,), (wrong,))], encoder(), long_answers="branch")
    assert error.value.problem == "answers and wrong answers do not part at one token in 1 of 1 pair"
    assert error.value.details == (f"row 8: {said} begins an answer and a wrong answer",)


def test_sequences_are_fed_in_but_for_their_last_token() -> None:
    by = encoder()
    rows = [Row(1, "I am", "U am", (" Timothy",), (" Sam",)), Row(2, "I am", "U am", (" Sam",))]
    pairs, _ = build_pairs(rows, by, long_answers="sequence")
    assert by.tokenizer.decode(pairs.clean["input_ids"][0].tolist()) == "<bos>I am Timoth"
    assert by.tokenizer.decode(pairs.corrupted["input_ids"][1, :3].tolist()) == "<bos>U am"
    assert pairs.answers.shape == (2, 1, 3)
    assert spelled(pairs.answers[:, 0], by) == [[" Tim", "oth", "y"], [" Sam"]]
    assert pairs.position.tolist() == [2, 2]
    assert pairs.wrong.shape == (2, 0)
    assert pairs.batch([1]).clean["input_ids"].shape == (1, 3)


def test_a_sequence_is_one_answer_after_its_prompt() -> None:
    with pytest.raises(TaskError) as error:
        build_pairs([Row(1, "I am", "U am", (" Sam", " Tim"))], encoder(), long_answers="sequence")
    assert error.value.details == ("row 1: 2 answers",)
    with pytest.raises(TaskError, match="row 1 has answers of several tokens, and they are read at position 0"):
        build_pairs([Row(1, "I am", "U am", (" Timothy",), position=0)], encoder(), long_answers="sequence")


# --- groups -----------------------------------------------------------------------------------------


def test_both_directions_and_shared_prompts_are_one_group() -> None:
    rows = [Row(1, "a", "b"), Row(2, "c", "d"), Row(3, "b", "a"), Row(4, "c", "e"), Row(5, "e", "x")]
    assert group_names(rows) == {1: "row 1", 2: "row 2", 3: "row 1", 4: "row 2", 5: "row 5"}


def test_groups_that_are_named_stay() -> None:
    rows = [Row(1, "a", "b", group="x"), Row(2, "b", "a", group="y"), Row(3, "c", "d")]
    assert group_names(rows) == {1: "x", 2: "y", 3: "row 3"}

import datasets
import pandas
import pytest

from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import Example, as_examples, as_table
from peft_mrpc.errors import UserError

ROWS = [("A cat sat.", "The cat was sitting."), ("A dog ran.", "It rained.")]
EXAMPLES = [Example(number, *row) for number, row in enumerate(ROWS)]


def test_tuples_datasets_and_frames_give_equal_examples() -> None:
    frame = pandas.DataFrame(ROWS, columns=["sentence1", "sentence2"])
    dataset = datasets.Dataset.from_pandas(frame)
    for inputs in (ROWS, [list(row) for row in ROWS], tuple(ROWS), frame, dataset):
        assert as_examples(inputs) == EXAMPLES


def test_examples_keep_their_labels_and_other_inputs_have_none() -> None:
    labelled = [Example(7, "a", "b", 1)]
    assert as_examples(labelled) == labelled
    assert as_examples([("a", "b", "yes")]) == [Example(0, "a", "b")]


def test_no_inputs_give_no_examples() -> None:
    assert as_examples([]) == []
    assert as_examples(pandas.DataFrame({"sentence1": [], "sentence2": []})) == []


def test_usual_and_named_columns_of_a_frame() -> None:
    frame = pandas.DataFrame(ROWS, columns=["premise", "hypothesis"])
    assert as_examples(frame) == EXAMPLES
    columns = DataConfig(sentence1_column="left", sentence2_column="right")
    frame = pandas.DataFrame(ROWS, columns=["left", "right"])
    assert as_examples(frame, columns) == EXAMPLES
    with pytest.raises(UserError, match="inputs: got the columns left, right; expected"):
        as_examples(frame)


def test_reports_every_invalid_input() -> None:
    with pytest.raises(UserError) as caught:
        as_examples([("a", ""), (None, "b"), (1, "b")])
    assert caught.value.faults == (
        "inputs: got an empty 'sentence2' in row 1; expected a sentence.",
        "inputs: got an empty 'sentence1' in row 2; expected a sentence.",
        "inputs: got a value of type int in 'sentence1' in row 3; expected text.",
    )
    with pytest.raises(UserError, match="inputs: got generator; expected a list of tuples"):
        as_examples(row for row in ROWS)
    with pytest.raises(UserError, match="inputs: got str; expected a list of tuples"):
        as_examples("A cat sat.")


def test_a_table_of_tuples_may_have_labels() -> None:
    assert as_table([("a", "b")], "rows").columns == ["sentence1", "sentence2"]
    assert as_table([("a", "b"), ("c", "d", "x")], "rows").rows[1]["label"] == "x"

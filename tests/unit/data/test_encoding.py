import pytest

from peft_mrpc.data.encoding import EncodedPairs


def test_numbers_are_kept_in_as_few_bytes_as_hold_them() -> None:
    """Whatever they are: of later pairs they may be larger, and a mask need not be ones."""
    texts = [[2, 7, 3], [5], [2, 300, 3, 9], [70_000, 1], [8, 8]]
    found = EncodedPairs()
    for part in (texts[:1], texts[1:3], texts[3:]):
        kinds = [[0, *[1] * (len(row) - 1)] for row in part]
        masks = [[*[1] * (len(row) - 1), len(row) % 2] for row in part]
        found.extend({"input_ids": part, "token_type_ids": kinds, "attention_mask": masks})
    labelled = found.labelled([1, 0, 1, 0, 1])
    for number, row in enumerate(texts):
        own = {"input_ids": row, "token_type_ids": [0, *[1] * (len(row) - 1)]}
        own["attention_mask"] = [*[1] * (len(row) - 1), len(row) % 2]
        assert found[number] == own
        assert labelled[number] == {**found[number], "labels": (number + 1) % 2}
    assert found.lengths == [3, 1, 4, 2, 2]
    unmasked = EncodedPairs()
    unmasked.extend({"input_ids": texts})
    assert unmasked[-1] == {"input_ids": [8, 8]}
    with pytest.raises(OverflowError):
        unmasked.extend({"input_ids": [[1 << 31]]})

import itertools
from typing import Any

import pytest
from conftest import ROWS, build_tokenizer

from peft_mrpc.data.encoding import add_labels, encode_examples
from peft_mrpc.data.examples import Example
from peft_mrpc.environment import peak_memory
from peft_mrpc.training.samplers import RandomSwapDataset

EXAMPLES = [Example(row, a, b, row % 2) for row, (a, b, _) in enumerate(ROWS)]


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = dataset.__getitems__(list(range(len(dataset))))
    return rows


@pytest.mark.parametrize("chunk", [3, 1000])
@pytest.mark.parametrize("max_length", [12, 64])
def test_encoded_examples_are_the_output_of_the_tokenizer(
    chunk: int, max_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_mrpc.data.encoding.CHUNK", chunk)
    tokenizer = build_tokenizer()
    firsts, seconds = [e.sentence1 for e in EXAMPLES], [e.sentence2 for e in EXAMPLES]
    expected = tokenizer(firsts, seconds, truncation=True, max_length=max_length)
    encoded, num_truncated = encode_examples(tokenizer, EXAMPLES, max_length)
    assert (num_truncated > 0) == (max_length == 12)
    assert rows_of(encoded) == [
        {**{name: expected[name][row] for name in expected}, "length": len(ids)}
        for row, ids in enumerate(expected["input_ids"])
    ]
    labelled = add_labels(encoded, EXAMPLES)
    assert labelled["labels"][:] == [e.label for e in EXAMPLES]
    assert "labels" not in encoded.column_names


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [3, 4, 8, 9, 16, 17])
def test_truncation_is_that_of_the_tokenizer(side: str, max_length: int) -> None:
    tokenizer = build_tokenizer()
    tokenizer.truncation_side = side
    words = "the a cat dog sat ran on mat road not same thing yes no answer".split()
    lengths = [*itertools.product(range(1, 16), repeat=2)]
    pairs = [(" ".join(words[:m]), " ".join(words[-n:])) for m, n in lengths]
    examples = [Example(row, *pair) for row, pair in enumerate(pairs)]
    encoded, num_truncated = encode_examples(tokenizer, examples, max_length)
    expected = tokenizer(*zip(*pairs, strict=True), truncation=True, max_length=max_length)
    assert num_truncated == sum(m + n + 3 > max_length for m, n in lengths)
    for name in expected:
        assert encoded[name][:] == expected[name]


def test_one_line_of_a_decoder_loses_its_end() -> None:
    tokenizer = build_tokenizer(is_chat=True)
    [row] = rows_of(encode_examples(tokenizer, [Example(0, "the cat sat", "a dog")], 6)[0])
    text = "Sentence 1: the cat sat\nSentence 2: a dog"
    assert row["input_ids"] == tokenizer(text, truncation=True, max_length=6)["input_ids"]


def test_memory_grows_linearly_with_the_length_of_both_sentences() -> None:
    tokenizer = build_tokenizer()
    example = Example(0, "cat " * 5_000, "dog " * 5_000)
    before = peak_memory()["resident_bytes"]
    [row] = rows_of(encode_examples(tokenizer, [example], 33)[0])
    cat, dog = tokenizer.convert_tokens_to_ids(["cat", "dog"])
    assert (row["input_ids"].count(cat), row["input_ids"].count(dog)) == (15, 15)
    # Each pair of two pieces of 33 tokens would need 3 GB in all.
    assert peak_memory()["resident_bytes"] - before < 1e9


def test_no_examples_encode_to_an_empty_dataset() -> None:
    encoded, num_truncated = encode_examples(build_tokenizer(), [], 64)
    assert (len(encoded), num_truncated) == (0, 0)


def test_a_separator_in_the_text_of_a_sentence_is_no_special_token() -> None:
    tokenizer = build_tokenizer()
    for first in ("the cat [SEP] sat", "[CLS] the [PAD] cat"):
        for max_length in (64, 8):
            [row] = rows_of(encode_examples(tokenizer, [Example(0, first, "a dog")], max_length)[0])
            ids = row["input_ids"]
            assert (ids.count(tokenizer.sep_token_id), ids.count(tokenizer.cls_token_id)) == (2, 1)
            assert tokenizer.pad_token_id not in ids


def test_swapped_examples_depend_on_the_epoch_alone() -> None:
    tokenizer = build_tokenizer()
    swapped = [Example(e.idx, e.sentence2 or "", e.sentence1, e.label) for e in EXAMPLES]
    orders = [encode_examples(tokenizer, rows, 64)[0] for rows in (EXAMPLES, swapped)]
    dataset, again = (RandomSwapDataset(*orders, seed=1) for _ in range(2))
    epochs = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        again.set_epoch(epoch)
        epochs.append(dataset.__getitems__([3, 0, 3, 8]))
        assert epochs[-1] == [again[row] for row in (3, 0, 3, 8)]
    assert any(epoch != epochs[0] for epoch in epochs)
    texts = {tuple(epoch[1]["input_ids"]) for epoch in epochs}
    assert texts <= {tuple(order[0]["input_ids"]) for order in orders}

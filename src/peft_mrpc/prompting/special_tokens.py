"""Special tokens written out in a sentence, tokenized as the text that they are.

A tokenizer cannot know who wrote `<|im_end|>`: the chat template, or a sentence that would end its
turn. Where a sentence holds one, the prompt is tokenized by a copy of the tokenizer that knows its
special tokens under other names, in one piece as ever; other prompts never come there.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example
from peft_mrpc.prompting.templates import Demonstration

# Around the number of a special token: the first where a sentence wrote it, the second where it is
# meant. Unicode keeps both for no text at all; in a sentence they are what cannot be read.
WRITTEN, MEANT = "\ufdd0", "\ufdd1"
UNREADABLE = str.maketrans(dict.fromkeys((WRITTEN, MEANT), "\ufffd"))


class ControlTokens:
    """Tells a tokenizer's special tokens from their like in sentences.

    Args:
        tokenizer: A fast one; others read every special token as such.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values() if tokenizer.is_fast else ()
        # The longest first, as a tokenizer finds them.
        self.names = sorted((one.content for one in added if one.special), key=len, reverse=True)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._pattern = re.compile("|".join(map(re.escape, self.names)))

    def hide(self, text: str) -> str:
        """A sentence with marks in the place of the special tokens in it."""
        return self._marked(text.translate(UNREADABLE), WRITTEN) if self.names else text

    def hide_in_pair(self, pair: Example) -> Example:
        """A pair with marks in its sentences."""
        first, second = self.hide(pair.sentence1), self.hide(pair.sentence2)
        return replace(pair, sentence1=first, sentence2=second)

    def hide_in_shown(self, shown: Demonstration) -> Demonstration:
        """A demonstration with marks in its sentences."""
        return Demonstration(self.hide(shown.sentence1), self.hide(shown.sentence2), shown.label)

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Token ids of prompts; what their marks stand for is plain text."""
        plain = [text for text in texts if WRITTEN not in text]
        found = self.tokenizer(plain, add_special_tokens=add_special_tokens) if plain else {}
        rest = iter(found.get("input_ids", []))
        return [
            self._tokenize_hidden(text, add_special_tokens) if WRITTEN in text else next(rest)
            for text in texts
        ]

    def _tokenize_hidden(self, text: str, add_special_tokens: bool) -> list[int]:
        text = self._marked(text, MEANT)
        text = re.sub(f"{WRITTEN}(\\d+){WRITTEN}", lambda m: self.names[int(m[1])], text)
        ids: list[int] = self._renamed.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    @cached_property
    def _renamed(self) -> Tokenizer:
        """The tokenizer with its special tokens under other names and the same numbers."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        content |= {"truncation": None, "padding": None}
        for one in content["added_tokens"]:
            one["content"] = self._renamed_name(one["content"])
        # In the vocabulary as well, or a sentence's text could be put together to one.
        model = content["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._renamed_name(k): number for k, number in model["vocab"].items()}
        else:
            model["vocab"] = [[self._renamed_name(k), score] for k, score in model["vocab"]]
        if "merges" in model:
            # None makes a control token of pieces, nor goes on from one.
            model["merges"] = [
                pair
                for pair in model["merges"]
                if not {*pair, "".join(pair)} & self._numbers.keys()
            ]
        if model.get("unk_token"):
            model["unk_token"] = self._renamed_name(model["unk_token"])
        return Tokenizer.from_str(json.dumps(content))

    def _renamed_name(self, name: str) -> str:
        return self._marked(name, MEANT) if name in self._numbers else name

    def _marked(self, text: str, mark: str) -> str:
        return self._pattern.sub(lambda m: f"{mark}{self._numbers[m[0]]}{mark}", text)

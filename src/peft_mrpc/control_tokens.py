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

from peft_mrpc.pairs import Pair
from peft_mrpc.prompts import Demonstration

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
        self._pattern = re.compile("|".join(map(re.escape, self.names)))

    def hide(self, text: str) -> str:
        """A sentence with marks in the place of the special tokens in it."""
        return self._marked(text.translate(UNREADABLE), WRITTEN) if self.names else text

    def hide_in_pair(self, pair: Pair) -> Pair:
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
        renamed, known = self._renamed
        text = self._marked(text, MEANT)
        text = re.sub(f"{WRITTEN}(\\d+){WRITTEN}", lambda m: self.names[int(m[1])], text)
        encoded = renamed.encode(text, add_special_tokens=add_special_tokens)
        # What the tokenizer adds by itself has its own number already.
        both = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
        return [token if is_added else known.get(token, token) for token, is_added in both]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int | None, int]]:
        """The tokenizer with its special tokens under other names, and what its numbers mean."""
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        content |= {"truncation": None, "padding": None}
        added = content["added_tokens"]
        for one in added:
            if one["special"]:
                one["content"] = self._marked(one["content"], MEANT)
        renamed = Tokenizer.from_str(json.dumps(content))
        # Names that the vocabulary does not have are numbered anew.
        return renamed, {renamed.token_to_id(one["content"]): one["id"] for one in added}

    def _marked(self, text: str, mark: str) -> str:
        return self._pattern.sub(lambda m: f"{mark}{self.names.index(m[0])}{mark}", text)

"""Encode examples with templates: the only place where prompts become token ids.

An encoding is used for everything that follows: the preview and the scores.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby
from textwrap import indent
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import ArrayLike, NDArray
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.prompting.calibration import TemplateScores, channel_scores
from peft_mrpc.prompting.templates import Demonstration, Template

# Llama 3.1's chat template inserts today's date by default; a fixed date keeps prompts constant.
CHAT_DATE = "26 Jul 2024"
# Examples that are tokenized at once: lists of tokens take ten times the memory of arrays.
CHUNK_SIZE = 1000


def max_prompt_length(config: PretrainedConfig, max_length: int) -> int:
    """The most tokens of a prompt with its answer: `max_length` or the model's limit."""
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


@dataclass(frozen=True, eq=False)
class Continuation:
    """Tokens whose probability is computed, and the tokens before them.

    Attributes:
        context: Token ids, at least one. Continuations of the same context share the array.
        tokens: Token ids, at least one.
    """

    context: NDArray[np.int32]
    tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the context and the continuation."""
        return len(self.context) + len(self.tokens)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The model's input: no token is predicted after the last one."""
        return (*self.context.tolist(), *self.tokens[:-1])


@dataclass(frozen=True)
class PromptBatch:
    """N examples encoded with one template, K continuations each.

    With direction `direct` the continuations are the words of each label in turn, with direction
    `channel` sentence 2 under each label, then sentence 1 under each label for `both_orders`.

    Attributes:
        template: The template.
        label_names: Names of the C labels.
        tokenizer: The tokenizer of the ids.
        rows: The continuations, N rows of K.
    """

    template: Template
    label_names: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Sequence[Continuation]]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt with its longest answer, [N]."""
        return [max(option.num_tokens for option in row) for row in self.rows]

    def fingerprint(self) -> str:
        """SHA-256 over all token ids."""
        digest = hashlib.sha256()
        for row in self.rows:
            for option in row:
                digest.update(np.array([len(option.context), *option.tokens]).tobytes())
                digest.update(option.context.tobytes())
        return digest.hexdigest()

    def template_scores(self, log_likelihoods: NDArray[np.float64]) -> TemplateScores:
        """Label scores from the log-likelihoods of the continuations, [N, K].

        The score of a label is the log-probability that one of its words is the answer. With
        `length_normalized` the log-probability of a word is the mean over its tokens.
        """
        num_tokens = np.array([[len(option.tokens) for option in row] for row in self.rows])
        if self.template.direction == "channel":
            shape = (len(self.rows), -1, len(self.label_names))
            return channel_scores(log_likelihoods.reshape(shape), num_tokens.reshape(shape))
        if self.template.length_normalized:
            log_likelihoods = log_likelihoods / num_tokens
        words = self.template.verbalizer(self.label_names)
        ends = np.cumsum([len(texts) for texts in words])[:-1]
        parts = np.split(log_likelihoods, ends, axis=1)
        labels = [np.logaddexp.reduce(part, axis=1) for part in parts]
        return TemplateScores.from_labels(np.stack(labels, axis=1))

    def decode(self, token_ids: Iterable[int]) -> str:
        """The exact text of token ids."""
        ids = [int(token) for token in token_ids]
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def preview(self) -> list[str]:
        """The prompts of the first example, and the continuations that are scored."""
        names = list(self.label_names)
        if self.template.direction == "direct":
            words = self.template.verbalizer(names)
            names = [name for name, texts in zip(names, words, strict=True) for _ in texts]
        row = self.rows[0]
        options = zip(row, names * (len(row) // len(names)), strict=True)
        lines = []
        for context, group in groupby(options, key=lambda option: option[0].context.tolist()):
            texts = [f"{self.decode(o.tokens)!r} ({name})" for o, name in group]
            lines += [indent(self.decode(context), "    "), f"  then {' or '.join(texts)}"]
        return lines


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes examples with templates for one model.

    Attributes:
        tokenizer: The model's tokenizer, with or without a chat template.
        label_names: Names of the C labels.
        max_length: Most tokens of a prompt with its answer; longer prompts are an error.
    """

    tokenizer: PreTrainedTokenizerBase
    label_names: Sequence[str]
    max_length: int

    def encode(
        self,
        template: Template,
        examples: Sequence[Example],
        demonstrations: Sequence[Demonstration],
    ) -> PromptBatch:
        """Encode N examples, each after the demonstrations.

        Raises:
            UserError: If two labels have the same tokens, or naming every example whose prompt is
                too long.
        """
        if template.style == "chat" and self.tokenizer.chat_template is None:
            raise UserError(
                f"template: {template.name!r} has style chat, and this model has no chat template; "
                "use style plain."
            )
        shots = [
            Demonstration(*self._escape_pair(shot.sentence1, shot.sentence2), shot.label)
            for shot in demonstrations
        ]
        rows: list[list[Continuation]] = []
        for start in range(0, len(examples), CHUNK_SIZE):
            chunk = examples[start : start + CHUNK_SIZE]
            pairs = [self._escape_pair(ex.sentence1, str(ex.sentence2)) for ex in chunk]
            if template.direction == "channel":
                rows += self._encode_channel(template, pairs)
            else:
                rows += self._encode_answers(template, pairs, shots)
        if template.direction == "direct":
            self._check_answers(template, rows[0])
        batch = PromptBatch(template, self.label_names, self.tokenizer, rows)
        raise_faults(
            [
                f"row {example.idx + 1}, {template.name}: its prompt has {length} tokens; expected "
                f"at most {self.max_length} (max_length, or the model's limit). Shorten it, or use "
                "fewer demonstrations."
                for example, length in zip(examples, batch.lengths, strict=True)
                if length > self.max_length
            ]
        )
        return batch

    def _encode_answers(
        self,
        template: Template,
        pairs: Sequence[tuple[str, str]],
        demonstrations: Sequence[Demonstration],
    ) -> list[list[Continuation]]:
        """The words of each label after the question."""
        prompts = [self._prompt(template, pair, demonstrations) for pair in pairs]
        contexts = self._tokenize(template, prompts)
        separator = self._before_answer(template, prompts[0], pairs[0], demonstrations)
        words = [separator + word for word in self._words(template)]
        # The last token of a context can change with the word after it, so both are tokenized
        # together; once for all examples if all prompts have the same end.
        is_same_end = len({prompt[-16:] for prompt in prompts}) == 1
        sample = prompts[:1] if is_same_end else prompts
        joint = self._tokenize(template, [prompt + word for prompt in sample for word in words])
        answers = [
            split_answers(contexts[row], joint[row * len(words) : (row + 1) * len(words)])
            for row in range(len(sample))
        ]
        rows = []
        for row, ids in enumerate(contexts):
            num_changed, tokens = answers[0 if is_same_end else row]
            context = np.array(ids[: len(ids) - num_changed], np.int32)
            rows.append([Continuation(context, after) for after in tokens])
        return rows

    def _encode_channel(
        self, template: Template, pairs: Sequence[tuple[str, str]]
    ) -> list[list[Continuation]]:
        """Sentence 2 after sentence 1 and the words of each label."""
        orders = [list(pairs)]
        if template.both_orders:
            orders.append([(second, first) for first, second in pairs])
        columns = [
            self._encode_texts(
                template,
                [template.to_channel_text(first, label) for first, _ in order],
                [second for _, second in order],
            )
            for order in orders
            for label in self.label_names
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def _encode_texts(
        self, template: Template, before: Sequence[str], after: Sequence[str]
    ) -> list[Continuation]:
        """Each text after its context; without a context after the BOS token."""
        if not any(before):
            bos = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if bos is None else bos
            if start is None:
                raise UserError(
                    f"template: {template.name!r} has a label without words, which needs a BOS or "
                    "EOS token, and this model has neither; use another template."
                )
            context = np.array([start], np.int32)
            texts = self._tokenize(template, [text.strip() for text in after], is_prompt=False)
            return [Continuation(context, tuple(ids)) for ids in texts]
        contexts = self._tokenize(template, before)
        joint = self._tokenize(template, [f"{a} {b}" for a, b in zip(before, after, strict=True)])
        continuations = []
        for before_ids, ids in zip(contexts, joint, strict=True):
            num_changed, (tokens,) = split_answers(before_ids, [ids])
            context = np.array(before_ids[: len(before_ids) - num_changed], np.int32)
            continuations.append(Continuation(context, tokens))
        return continuations

    def _check_answers(self, template: Template, row: Sequence[Continuation]) -> None:
        """Refuse label words that are token prefixes of others: they are always as likely."""
        answers = zip(self._words(template), [option.tokens for option in row], strict=True)
        raise_faults(
            [
                f"template: {template.name!r}: label words {word!r} and {other!r}: one is a token "
                "prefix of the other; choose different label words."
                for (word, tokens), (other, other_tokens) in combinations(answers, 2)
                if tokens[: len(other_tokens)] == other_tokens[: len(tokens)]
            ]
        )

    def _words(self, template: Template) -> list[str]:
        """All label words, in the order of the labels."""
        return [word for texts in template.verbalizer(self.label_names) for word in texts]

    # ---- prompts as text ----

    def _is_chat(self, template: Template) -> bool:
        if template.direction == "channel" or template.style == "plain":
            return False
        return template.style == "chat" or self.tokenizer.chat_template is not None

    def _prompt(
        self, template: Template, pair: tuple[str, str], demonstrations: Sequence[Demonstration]
    ) -> str:
        """The text in front of the answer."""
        if not self._is_chat(template):
            return template.to_text(*pair, demonstrations)
        messages = template.to_messages(*pair, demonstrations)
        return self._apply_chat_template(template, messages, add_generation_prompt=True)

    def _apply_chat_template(
        self, template: Template, messages: list[dict[str, str]], **options: Any
    ) -> str:
        """The chat as text; a system message joins the first user turn if roles forbid it."""
        # Without `enable_thinking=False` Qwen3's answers begin with a thought.
        options |= {"tokenize": False, "date_string": CHAT_DATE, "enable_thinking": False}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **options))
        except TemplateError as error:
            if messages[0]["role"] != "system":
                raise UserError(
                    f"template: {template.name!r}: this model's chat template refuses it: "
                    f"{one_line(error)[:200]}"
                ) from error
        system, first, *rest = messages
        messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return self._apply_chat_template(template, messages, **options)

    def _before_answer(
        self,
        template: Template,
        prompt: str,
        pair: tuple[str, str],
        demonstrations: Sequence[Demonstration],
    ) -> str:
        """Text between prompt and answer: a space, or what the chat template writes."""
        if not self._is_chat(template):
            return " "
        word = self._words(template)[0]
        messages = template.to_messages(*pair, demonstrations)
        chat = self._apply_chat_template(
            template, [*messages, {"role": "assistant", "content": word}]
        )
        separator, _, _ = chat[len(prompt) :].partition(word)
        return separator if chat.startswith(prompt) and not separator.strip() else ""

    # ---- text to token ids ----

    def _tokenize(
        self, template: Template, texts: Sequence[str], is_prompt: bool = True
    ) -> list[list[int]]:
        # A chat template writes the BOS itself; a second one would change every score.
        adds_special = is_prompt and not self._is_chat(template)
        encoding = self.tokenizer(list(texts), add_special_tokens=adds_special)
        ids: list[list[int]] = encoding["input_ids"]
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if adds_special and eos is not None and bos != eos:  # T5-like tokenizers append EOS
            ids = [row[:-1] if row[-1:] == [eos] else row for row in ids]
        if is_prompt and any(row[:2] == [bos, bos] for row in ids):
            raise UserError(
                f"template: {template.name!r}: the prompt begins with two BOS tokens, one of the "
                "tokenizer and one of the text or the chat template; remove one."
            )
        if is_prompt and not adds_special and (start := self._tokenizer_bos):
            # Some chat templates leave the BOS to the tokenizer.
            ids = [row if row[:1] == start else [*start, *row] for row in ids]
        return ids

    @cached_property
    def _tokenizer_bos(self) -> list[int]:
        """The BOS as a list if the tokenizer begins texts with it, else an empty list."""
        bos = self.tokenizer.bos_token_id
        start: list[int] = self.tokenizer("a")["input_ids"][:1]
        return start if bos is not None and start == [bos] else []

    def _escape_pair(self, sentence1: str, sentence2: str) -> tuple[str, str]:
        """Break special tokens such as `<|im_end|>` in sentences: a space after their first letter.

        A tokenizer cannot tell whether the chat template or a sentence wrote a special token, so a
        sentence could end its own turn.
        """
        if self._special_tokens is None:
            return sentence1, sentence2
        escape = self._special_tokens.sub
        return escape(r"\2 ", sentence1), escape(r"\2 ", sentence2)

    @cached_property
    def _special_tokens(self) -> re.Pattern[str] | None:
        """Matches the first letter of each special token, also of overlapping ones."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = [token.content for token in added if token.special]
        return re.compile(f"(?=({'|'.join(map(re.escape, names))}))(.)", re.S) if names else None


def common_prefix_length(sequences: Sequence[ArrayLike]) -> int:
    """How many tokens all sequences begin with; at least one sequence."""
    first, *others = map(np.asarray, sequences)
    length = len(first)
    for other in others:
        length = min(length, len(other))
        differences = first[:length] != other[:length]
        if differences.any():
            length = int(differences.argmax())
    return length


def split_answers(
    context: list[int], joint: Sequence[list[int]]
) -> tuple[int, list[tuple[int, ...]]]:
    """The tokens of several words after one context.

    Args:
        context: Token ids of the context alone.
        joint: Token ids of the context with each word.
    Returns:
        How many tokens at the end of the context change with a word after it, and the tokens of
        each word. The changed tokens belong to all words, so that all have the same context.
    """
    num_same = min(common_prefix_length([context, ids[:-1]]) for ids in joint)
    return len(context) - num_same, [tuple(ids[num_same:]) for ids in joint]

"""A causal LM asked through templates: prompts to token ids, log-probabilities to label scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, one_line, raise_faults
from peft_mrpc.prompting.calibration import Scores
from peft_mrpc.prompting.loglikelihood import Continuation
from peft_mrpc.prompting.prefix_cache import common_prefix
from peft_mrpc.prompting.special_tokens import ControlTokens
from peft_mrpc.prompting.templates import Demonstration, Template

# Llama 3.1's template writes today's date unless it is given one: the same prompt every day.
CHAT_DATE = "26 Jul 2024"
# How long an answer is that a model writes.
ANSWER_TOKENS = 8
# What demonstrations each pair is shown.
Show = Callable[[Sequence[Example]], list[list[Demonstration]]]


@dataclass(frozen=True)
class Questions:
    """What an engine is asked.

    Attributes:
        template: The wording.
        label_names: Names of the C labels.
        pairs: N pairs.
        shown: The demonstrations that stand before each of them.
    """

    template: Template
    label_names: Sequence[str]
    pairs: Sequence[Example]
    shown: Sequence[Sequence[Demonstration]]


def show_nothing(pairs: Sequence[Example]) -> list[list[Demonstration]]:
    """No demonstrations, for any pair."""
    return [[] for _ in pairs]


def prompt_limit(config: PretrainedConfig, max_length: int) -> int:
    """The most tokens of a prompt and its answer: those asked for, or as the model allows."""
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


@dataclass(frozen=True)
class PromptEncoder:
    """Turns pairs into the continuations to score, and their log-probabilities into label scores.

    Attributes:
        tokenizer: The model's, with a chat template or without.
        template: The question.
        label_names: Names of the C labels.
        max_length: Most tokens of a prompt and its answer; a longer one is an error.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    label_names: Sequence[str]
    max_length: int

    @property
    def is_chat(self) -> bool:
        """Whether prompts are turns of a chat."""
        if self.template.direction == "channel" or self.template.style == "plain":
            return False
        return self.template.style == "chat" or self.tokenizer.chat_template is not None

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def encode(
        self, pairs: Sequence[Example], shown: Sequence[Sequence[Demonstration]]
    ) -> list[list[Continuation]]:
        """K continuations for each pair: each label's words, or sentence 2 under each label.

        Raises:
            UserError: If two labels have the same tokens, or a prompt is too long; every pair that
                is too long is named.
        """
        if self.template.style == "chat" and self.tokenizer.chat_template is None:
            raise UserError(
                f"--template: {self.template.name!r} is a chat, and this model has no chat "
                "template; use style plain."
            )
        pairs = [self._control_tokens.hide_in_pair(pair) for pair in pairs]
        shown = [[self._control_tokens.hide_in_shown(one) for one in own] for own in shown]
        if self.template.direction == "channel":
            rows = self._channel_rows(pairs)
        else:
            rows = self._answer_rows(pairs, shown)
            self._check_answers(rows[0])
        lengths = [max(one.num_tokens for one in row) for row in rows]
        raise_faults(
            [
                f"row {pair.idx + 1}, {self.template.name}: its prompt has {length} tokens; "
                f"expected at most {self.max_length} (max_length, or what the model allows). "
                "Shorten it, or show fewer demonstrations."
                for pair, length in zip(pairs, lengths, strict=True)
                if length > self.max_length
            ]
        )
        return rows

    def _check_answers(self, row: Sequence[Continuation]) -> None:
        """Refuse words of which one is another, or begins it: it is as likely at least."""
        words = [word for own in self._words() for word in own]
        answers = [one.context + one.tokens for one in row]
        raise_faults(
            [
                f"--template: {self.template.name!r}: got the words {words[a]!r} and {words[b]!r}, "
                "of which one is or begins the other in this model's tokens; expected others."
                for a in range(len(words))
                for b in range(a + 1, len(words))
                if answers[a][: len(answers[b])] == answers[b][: len(answers[a])]
            ]
        )

    def scores(
        self, log_probabilities: NDArray[np.float64], rows: Sequence[Sequence[Continuation]]
    ) -> Scores:
        """What the log-probabilities of the continuations say of the labels, [N, K].

        A label's score is the log-probability that any of its words is the answer;
        length-normalized, of each word the mean over its tokens.
        """
        lengths = np.array([[len(one.tokens) for one in row] for row in rows])
        if self.template.direction == "channel":
            shape = (len(rows), -1, len(self.label_names))
            return channel_scores(log_probabilities.reshape(shape), lengths.reshape(shape))
        if self.template.length_normalized:
            log_probabilities = log_probabilities / lengths
        sizes = np.cumsum([len(words) for words in self._words()])[:-1]
        of_labels = np.split(log_probabilities, sizes, axis=1)
        labels = [np.logaddexp.reduce(own, axis=1) for own in of_labels]
        return Scores.of_labels(np.stack(labels, axis=1))

    def prompt(self, pair: Example, shown: Sequence[Demonstration]) -> str:
        """The text after which the answer comes."""
        if not self.is_chat:
            return self.template.plain(pair.sentence1, pair.sentence2, shown)
        messages = self.template.messages(pair.sentence1, pair.sentence2, shown)
        return self._chat(messages, add_generation_prompt=True)

    def _chat(self, messages: list[dict[str, str]], **options: Any) -> str:
        """A chat as this model writes it; without a system role that text is the user's."""
        fixed: dict[str, Any] = {"tokenize": False, "date_string": CHAT_DATE}
        # Qwen3's would begin with a thought, not the answer.
        fixed |= {"enable_thinking": False, **options}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **fixed))
        except TemplateError as error:
            if messages[0]["role"] != "system":
                raise UserError(
                    f"--template: {self.template.name!r}: this model's chat template refuses it: "
                    f"{one_line(error)[:200]}"
                ) from error
        system, first, *rest = messages
        content = f"{system['content']}\n\n{first['content']}"
        return self._chat([{**first, "content": content}, *rest], **options)

    def _before_answer(self, prompt: str, pair: Example, shown: Sequence[Demonstration]) -> str:
        """What stands between prompt and answer: a space, or what the chat template writes."""
        if not self.is_chat:
            return " "
        word = self._words()[0][0]
        messages = self.template.messages(pair.sentence1, pair.sentence2, shown)
        whole = self._chat([*messages, {"role": "assistant", "content": word}])
        begins, _, _ = whole[len(prompt) :].partition(word)
        return begins if whole.startswith(prompt) and not begins.strip() else ""

    @property
    def answered_labels(self) -> list[str]:
        """The label that each continuation of a row speaks for; a second order has them again."""
        if self.template.direction == "channel":
            return list(self.label_names)
        both = zip(self.label_names, self._words(), strict=True)
        return [name for name, words in both for _ in words]

    def _words(self) -> list[tuple[str, ...]]:
        return self.template.words(self.label_names)

    def _answer_rows(
        self, pairs: Sequence[Example], shown: Sequence[Sequence[Demonstration]]
    ) -> list[list[Continuation]]:
        prompts = [self.prompt(*both) for both in zip(pairs, shown, strict=True)]
        contexts = self._tokenize(prompts)
        space = self._before_answer(prompts[0], pairs[0], shown[0])
        words = [space + word for own in self._words() for word in own]
        # What stands before a word can change its tokens, so both are tokenized together: once
        # for all, where all prompts end alike.
        ends_alike = len({prompt[-16:] for prompt in prompts}) == 1
        sample = prompts[:1] if ends_alike else prompts
        joint = self._tokenize([prompt + word for prompt in sample for word in words])
        rows = []
        for number, context in enumerate(contexts):
            first = 0 if ends_alike else number
            own = joint[first * len(words) : (first + 1) * len(words)]
            same = min(_num_same(contexts[first], ids) for ids in own)
            rows.append([_split(contexts[first], ids, context, same) for ids in own])
        return rows

    def _channel_rows(self, pairs: Sequence[Example]) -> list[list[Continuation]]:
        orders = [[(p.sentence1, p.sentence2) for p in pairs]]
        if self.template.both_orders:
            orders.append([(p.sentence2, p.sentence1) for p in pairs])
        columns = []
        for sentences in orders:
            for label in self.label_names:
                before = [self.template.channel(first, label) for first, _ in sentences]
                after = [f" {second}" for _, second in sentences]
                columns.append(self._column(before, after))
        return [list(row) for row in zip(*columns, strict=True)]

    def _column(self, before: Sequence[str], after: Sequence[str]) -> list[Continuation]:
        """Each text after its context; without one, after the token that begins a text."""
        if not any(before):
            bos = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if bos is None else bos
            alone = self._tokenize([text.strip() for text in after], special=False)
            return [Continuation((int(start),), tuple(ids)) for ids in alone]
        contexts = self._tokenize(list(before))
        joint = self._tokenize([a + b for a, b in zip(before, after, strict=True)])
        return [_split(a, b, a, _num_same(a, b)) for a, b in zip(contexts, joint, strict=True)]

    def _tokenize(self, texts: list[str], special: bool = True) -> list[list[int]]:
        # A chat template writes the BOS itself; a second one would change every score.
        add = special and not self.is_chat
        ids = self._control_tokens.tokenize(texts, add)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if add and eos is not None and bos != eos:  # T5-like tokenizers end every text
            ids = [row[:-1] if row[-1:] == [eos] else row for row in ids]
        if special and any(row[:2] == [bos, bos] for row in ids):
            raise UserError(
                f"--template: {self.template.name!r}: the prompt begins with two BOS tokens, which "
                "the text or the chat template writes as well as the tokenizer."
            )
        if special and not add and (lead := self._bos_of_texts):
            # A chat template that leaves the BOS to the tokenizer, as some older ones do.
            ids = [row if row[:1] == lead else [*lead, *row] for row in ids]
        return ids

    @cached_property
    def _bos_of_texts(self) -> list[int]:
        """What the tokenizer begins a text with, if that is its BOS."""
        bos = self.tokenizer.bos_token_id
        begun = self.tokenizer("a")["input_ids"][:1]
        return begun if bos is not None and begun == [bos] else []


def channel_scores(log_likelihoods: NDArray[np.float64], lengths: NDArray[np.int64]) -> Scores:
    """What sentences read after each other say of the labels (arXiv:2108.04106).

    A label's score is its share of the log-likelihoods of the second sentence (long and rare
    sentences have large ones under every label), in the order of the sentences that speaks less
    for the last label: two that mean the same lead to each other. A fit reads the shares and the
    log-likelihoods, whole and per token; of two orders the smaller first, so that it does not
    matter which sentence stands first.

    Args:
        log_likelihoods: Of N pairs in O orders under C labels, in nats, [N, O, C].
        lengths: Over how many tokens these are sums, [N, O, C].
    """
    shares = log_likelihoods / np.abs(log_likelihoods).mean(axis=-1, keepdims=True)
    gaps = shares[:, :, -1] - shares.mean(axis=-1)  # [N, O]
    labels = shares[np.arange(len(shares)), gaps.argmin(axis=1)]  # [N, C]
    figures = [shares, log_likelihoods, log_likelihoods / lengths]
    by_order = np.concatenate([np.sort(one, axis=1) for one in figures], axis=1)  # [N, V, C]
    return Scores(labels, by_order.transpose(1, 0, 2))


def _num_same(context: Sequence[int], joint: Sequence[int]) -> int:
    """How many tokens of a context are as they were with a word after it."""
    return common_prefix([tuple(context), tuple(joint[:-1])])


def _split(
    context: Sequence[int], joint: Sequence[int], own: Sequence[int], same: int
) -> Continuation:
    """The continuation of `own`, as `joint` continues `context` after its first `same` tokens.

    Where a word changes the context's last token, the changed one belongs to the continuation: of
    all words of a row, or one would be scored with a token more than another.
    """
    cut = len(context) - same
    return Continuation(tuple(own[: len(own) - cut]), tuple(joint[same:]))

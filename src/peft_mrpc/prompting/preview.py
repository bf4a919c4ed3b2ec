"""What a hard prompt will ask, before the model's weights are there: its tokenizer is enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import indent

from peft_mrpc.config import PromptConfig
from peft_mrpc.data.examples import Example
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.models.hub import ModelSource
from peft_mrpc.models.loading import check_causal_lm, load_tokenizer
from peft_mrpc.prompting.prompt_encoder import PromptEncoder, Show, prompt_limit
from peft_mrpc.prompting.templates import Demonstration, Template


@dataclass(frozen=True)
class PromptPlan:
    """The prompts of a model that is loaded here.

    Attributes:
        encoders: One for each wording.
        lengths: By split, the tokens of every prompt with its longest answer.
        first: By split, its first pair and the demonstrations before it.
    """

    encoders: Sequence[PromptEncoder]
    lengths: Mapping[str, Sequence[int]]
    first: Mapping[str, tuple[Example, Sequence[Demonstration]]]

    def lines(self, split: str) -> list[str]:
        """How long prompts are, and what each wording makes of the first pair of a split."""
        wordings = len(self.encoders)
        by = f" in {wordings} wordings" if wordings > 1 else ""
        lines = [
            f"prompts: {name} {len(own) // wordings:,} pairs{by}, {sum(own):,} tokens, "
            f"{sum(own) / len(own):.0f} a prompt, at most {max(own):,}"
            for name, own in self.lengths.items()
        ]
        for encoder in self.encoders:
            title = f"{encoder.template.name}, first pair of {split}:"
            lines += ["", title, *_first(encoder, *self.first[split])]
        return [*lines, ""]


def build_plan(
    config: PromptConfig,
    templates: Sequence[Template],
    source: ModelSource,
    label_names: Sequence[str],
    show: Show,
    asked: Mapping[str, Sequence[Example]],
) -> PromptPlan:
    """Write every prompt in this model's tokens.

    Args:
        config: The flags of the prompt.
        templates: The questions.
        source: The model.
        label_names: Names of the C labels.
        show: Gives each pair the demonstrations before it.
        asked: The pairs by the split that they are of.
    Raises:
        UserError: Naming whatever the model's tokens do not allow, or if it is no causal LM.
    """
    limit = prompt_limit(check_causal_lm(source), config.max_length)
    tokenizer = load_tokenizer(source)
    encoders = [PromptEncoder(tokenizer, one, label_names, limit) for one in templates]
    faults: list[str] = []
    lengths: dict[str, list[int]] = {split: [] for split in asked}
    first = {}
    for split, pairs in asked.items():
        shown = show(pairs)
        first[split] = pairs[0], shown[0]
        for encoder in encoders:
            try:
                rows = encoder.encode(pairs, shown)
            except UserError as error:
                own = [f"{split}, {one}" if one.startswith("row ") else one for one in error.faults]
                faults += [fault for fault in own if fault not in faults]
            else:
                lengths[split] += [max(one.num_tokens for one in row) for row in rows]
    raise_faults(faults)
    return PromptPlan(encoders, lengths, first)


def _first(encoder: PromptEncoder, pair: Example, shown: Sequence[Demonstration]) -> list[str]:
    """Each text of a pair as the model reads it, and the words whose probabilities are read."""

    def decode(ids: Sequence[int]) -> str:
        return str(encoder.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    names = encoder.answered_labels
    (row,) = encoder.encode([pair], [shown])
    lines = []
    answers = zip(row, names * (len(row) // len(names)), strict=True)
    for context, own in groupby(answers, key=lambda answer: answer[0].context):
        words = [f"{decode(one.tokens)!r} ({name})" for one, name in own]
        lines += [indent(decode(context), "    "), f"  then {' or '.join(words)}"]
    return lines

"""A sequence classifier that reads both sentences: any encoder, a stated pooling, a small head.

Self-contained on purpose: this file is saved beside the weights, so that `transformers` alone loads
them with `trust_remote_code=True`.

Shapes: B batch, T tokens, P virtual tokens, H hidden, C classes.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

POOLINGS = ("aligned", "cls", "first", "last", "mean", "segments", "weighted")
# The poolings that compare tokens of one sentence with those of the other.
ALIGNS = ("aligned", "weighted")
# The poolings that need to know where each sentence stands.
READS_SENTENCES = (*ALIGNS, "segments")
# Where virtual tokens stand beside the first token, [CLS].
PROMPT_POSITIONS = ("before", "after")
# What tools look for in a configuration and find here as the encoder has it.
SHARED_WITH_ENCODER = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "initializer_range",
)


class SentencePairConfig(PretrainedConfig):
    """Configuration of a pair classifier.

    Args:
        encoder: The encoder's own configuration, as a dictionary.
        pooling: What the head reads: `cls` the first real token, `first` the first virtual token
            (the first real one, where there are none), `last` the last real token (what a decoder
            has read all of the pair at), `mean` the mean of all real tokens, `segments`
            each sentence's mean u and v as [u, v, |u - v|, u * v] (arXiv:1705.02364, section 3.2),
            `aligned` each token beside what it is aligned to in the other sentence, `weighted` the
            same with a learned weight for each token (`AlignedHead`).
        special_ids: Token ids that are no word: what begins, separates, ends and pads.
        head_dropout: Dropout before each layer of the head.
        head_size: Hidden width of a head that aligns; the others are as wide as the encoder.
        prompt_position: Where the encoder sees virtual tokens: `before` [CLS], as PEFT gives them,
            or `after` it, so that [CLS] has the position it was pretrained in.
    """

    model_type = "sentence_pair"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        pooling: str = "segments",
        special_ids: list[int] | None = None,
        head_dropout: float = 0.1,
        head_size: int = 128,
        prompt_position: str = "before",
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder or {}
        self.pooling = pooling
        self.special_ids = special_ids or []
        self.head_dropout = head_dropout
        self.head_size = head_size
        self.prompt_position = prompt_position
        if self.encoder:
            own = self.encoder_config()
            for name in SHARED_WITH_ENCODER:
                setattr(self, name, getattr(own, name, None))
        super().__init__(**kwargs)

    def encoder_config(self) -> PretrainedConfig:
        """The encoder's configuration, of its own class."""
        options = dict(self.encoder)
        config: PretrainedConfig = AutoConfig.for_model(options.pop("model_type"), **options)
        return config


class PairHead(nn.Module):
    """One hidden layer over the pooled features, [B, F] -> [B, C]; F is H, or 4 H for segments."""

    def __init__(self, config: SentencePairConfig) -> None:
        super().__init__()
        assert config.hidden_size is not None and config.num_labels is not None
        width = int(config.hidden_size)
        size = width * (4 if config.pooling == "segments" else 1)
        self.dense = nn.Linear(size, width)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out_proj = nn.Linear(width, config.num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.dense(self.dropout(features)))
        logits: torch.Tensor = self.out_proj(self.dropout(hidden))
        return logits


class AlignedHead(nn.Module):
    """Compare each token with what it is aligned to in the other sentence (arXiv:1606.01933).

    Attend, compare, aggregate: soft alignment by the cosine of the encoder's outputs, a layer over
    |h - a| and h * a for each token h and its aligned a, the mean of that over each sentence, a
    layer over the two. How well each sentence's tokens are covered by the other's goes in as well
    (the mean of the best cosines, as BERTScore's, arXiv:1904.09675).

    Under `weighted` what was compared is summed a second time, each token by a weight that is
    learned from what it is: a name that differs says more than an article (importance weighting in
    BERTScore's section 3; self-attentive pooling, arXiv:1703.03130).
    """

    def __init__(self, config: SentencePairConfig) -> None:
        super().__init__()
        assert config.hidden_size is not None and config.num_labels is not None
        width, size = int(config.hidden_size), config.head_size
        self.log_sharpness = nn.Parameter(torch.tensor(10.0).log())
        self.compare = nn.Linear(2 * width, size)
        is_weighted = config.pooling == "weighted"
        # No bias: the softmax over the tokens would not see it.
        self.importance = nn.Linear(width, 1, bias=False) if is_weighted else None
        self.dense = nn.Linear((4 if is_weighted else 2) * size + 2, size)
        self.dropout = nn.Dropout(config.head_dropout)
        self.out_proj = nn.Linear(size, config.num_labels)

    def forward(self, hidden: torch.Tensor, sentence_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of token states [B, T, H], of which `sentence_ids` says whose they are."""
        unit = nn.functional.normalize(hidden.float(), dim=-1)
        similarity = unit @ unit.transpose(1, 2)  # [B, T, T]
        # One token of sentence 1 and one of sentence 2; what is in neither has id 0.
        other = sentence_ids[:, :, None] + sentence_ids[:, None, :] == 3
        scores = (self.log_sharpness.exp() * similarity).masked_fill(~other, -1e4)
        weights = scores.softmax(dim=-1) * other
        tokens = unit * unit.shape[-1] ** 0.5  # entries of about 1, as a normalization gives them
        aligned = weights.to(tokens.dtype) @ tokens
        compared = torch.cat([(tokens - aligned).abs(), tokens * aligned], dim=-1)
        compared = torch.relu(self.compare(self.dropout(compared)))  # [B, T, head_size]
        best = similarity.masked_fill(~other, -1).amax(dim=-1, keepdim=True)  # [B, T, 1]
        first, second = (masked_mean(compared, sentence_ids == number) for number in (1, 2))
        covered, covering = (masked_mean(best, sentence_ids == number) for number in (1, 2))
        # As sum and difference, what does not depend on the order is learned once. Cosines lie
        # close together: ten times as far apart they are learned at the rate of the rest.
        pooled = [first + second, first - second]
        if self.importance is not None:
            importance = self.importance(tokens)  # [B, T, 1]
            first_sum, second_sum = (
                weighted_sum(compared, importance, sentence_ids == number) for number in (1, 2)
            )
            pooled += [first_sum + second_sum, first_sum - second_sum]
        pooled += [10 * (covered + covering), 10 * (covered - covering)]
        features = torch.tanh(self.dense(self.dropout(torch.cat(pooled, dim=-1))))
        logits: torch.Tensor = self.out_proj(self.dropout(features))
        return logits


class SentencePairModel(PreTrainedModel):
    """Encoder, pooling and head.

    Virtual tokens that PEFT puts before a pair are seen by the encoder's attention, before [CLS] or
    after it, and left out of the pooling (but for `first`): what the head reads is the pair.
    """

    config_class = SentencePairConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: SentencePairConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config())
        _drop_pooler(self.encoder)
        head = AlignedHead if config.pooling in ALIGNS else PairHead
        self.classifier = head(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            std = getattr(self.config, "initializer_range", None)  # OPT and BART have another
            module.weight.data.normal_(mean=0.0, std=0.02 if std is None else std)
            if module.bias is not None:
                module.bias.data.zero_()

    def use_encoder(self, encoder: PreTrainedModel) -> None:
        """Take over a pretrained encoder in the place of the random one."""
        _drop_pooler(encoder)
        self.encoder = encoder

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        sentence_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Any = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify pairs.

        Args:
            input_ids: [B, T], or `inputs_embeds`, [B, P + T, H].
            attention_mask: [B, P + T].
            token_type_ids: [B, P + T], for encoders that have them.
            inputs_embeds: What PEFT gives for `input_ids`, virtual tokens first.
            sentence_ids: [B, T], 1 and 2 on the sentences' tokens, 0 elsewhere; found from
                `input_ids` where not given.
            labels: [B].
            past_key_values: Keys and values of virtual tokens in every layer.
            return_dict: Ignored; a mapping is returned.
        """
        if sentence_ids is None:
            assert input_ids is not None, "inputs_embeds need sentence_ids"
            sentence_ids = find_sentences(input_ids, self.config.special_ids)
        hidden = self._encode(
            0 if inputs_embeds is None else inputs_embeds.shape[1] - sentence_ids.shape[1],
            {
                "input_ids": input_ids,
                "inputs_embeds": inputs_embeds,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
            },
            {} if past_key_values is None else {"past_key_values": past_key_values},
        )
        if self.config.pooling in ALIGNS:
            logits = self.classifier(hidden[:, -sentence_ids.shape[1] :], sentence_ids)
        else:
            logits = self.classifier(self._pool(hidden, attention_mask, sentence_ids))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _encode(
        self, virtual: int, tokens: dict[str, torch.Tensor | None], other: dict[str, Any]
    ) -> torch.Tensor:
        """Hidden states, [B, P + T, H], virtual tokens first wherever the encoder saw them."""
        given = {name: tensor for name, tensor in tokens.items() if tensor is not None}
        moves = virtual > 0 and self.config.prompt_position == "after"
        if moves:
            given = {n: roll_first(tensor, virtual + 1, 1) for n, tensor in given.items()}
        hidden: torch.Tensor = self.encoder(**given, **other)[0]
        return roll_first(hidden, virtual + 1, -1) if moves else hidden

    def _pool(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sentence_ids: torch.Tensor,
    ) -> torch.Tensor:
        if self.config.pooling == "first":
            return hidden[:, 0]
        if self.config.pooling == "last":
            return hidden[torch.arange(len(hidden)), _last_real(hidden, attention_mask)]
        virtual = hidden.shape[1] - sentence_ids.shape[1]
        hidden = hidden[:, virtual:]  # [B, T, H]
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if self.config.pooling == "mean":
            real = torch.ones_like(sentence_ids) if attention_mask is None else attention_mask
            return masked_mean(hidden, real[:, -sentence_ids.shape[1] :])
        first, second = (masked_mean(hidden, sentence_ids == number) for number in (1, 2))
        return torch.cat([first, second, (first - second).abs(), first * second], dim=-1)


def _last_real(hidden: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Position of each row's last token that is no pad, [B]; right for padding on either side."""
    length = hidden.shape[1]
    if attention_mask is None:
        return torch.full((len(hidden),), length - 1, device=hidden.device)
    return length - 1 - attention_mask.flip(1).argmax(dim=1)


def _drop_pooler(encoder: PreTrainedModel) -> None:
    # Unused here: its parameters would get no gradient, which DDP takes for an error.
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]


def roll_first(tensor: torch.Tensor, count: int, step: int) -> torch.Tensor:
    """Turn the first `count` columns of [B, T, ...] around by `step`; the others stay."""
    return torch.cat([tensor[:, :count].roll(step, dims=1), tensor[:, count:]], dim=1)


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that the mask keeps, [B, T, H] and [B, T] -> [B, H]; zero for none."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def weighted_sum(hidden: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over the tokens that the mask keeps by the softmax of their scores; zero for none.

    Shapes: [B, T, H], [B, T, 1] and [B, T] -> [B, H].
    """
    weights = scores.float().masked_fill(~mask.unsqueeze(-1), -1e4).softmax(dim=1)
    return (hidden * (weights * mask.unsqueeze(-1)).to(hidden.dtype)).sum(dim=1)


def find_sentences(input_ids: torch.Tensor, special_ids: list[int]) -> torch.Tensor:
    """Mark the sentences of encoded pairs: [B, T] of 1, 2, and 0 for everything else.

    The first special token after a word ends sentence 1; that holds for `[CLS] a [SEP] b [SEP]`
    and for RoBERTa's `<s> a </s></s> b </s>`, padded on either side.
    """
    special = torch.zeros_like(input_ids, dtype=torch.bool)
    for token in special_ids:
        special |= input_ids == token
    words = ~special
    # Special tokens that come after the first word of the row.
    ended = (special & (words.cumsum(dim=1) > 0)).cumsum(dim=1) > 0
    return words.long() * (1 + ended.long())


SentencePairConfig.register_for_auto_class()
SentencePairModel.register_for_auto_class("AutoModelForSequenceClassification")

"""Log-likelihoods of token sequences after other token sequences, by a causal LM.

Token ids only, no tokenizer. The tokens that all sequences begin with (an instruction,
demonstrations) go through the model once; their keys and values stand before every batch. This is
exact: a causal model computes the same for these tokens whatever follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from peft_mrpc import __version__
from peft_mrpc.environment import describe_environment
from peft_mrpc.errors import UserError
from peft_mrpc.interop.transformers_internals import (
    expand_cache,
    has_only_keys_and_values,
    hub_revision,
)
from peft_mrpc.models.batched_inference import ScoreCache, out_of_memory, run_batched
from peft_mrpc.prompting.calibration import TemplateScores
from peft_mrpc.prompting.prompt_encoder import Continuation, PromptBatch, common_prefix_length

# A shorter prefix costs more than it saves.
MIN_PREFIX_LENGTH = 8
# Most logits in one softmax: all positions of a large vocabulary at once would be gigabytes.
SOFTMAX_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class SharedPrefix:
    """The first tokens of all sequences, and their keys and values.

    Attributes:
        length: Number of tokens; 0 if nothing is shared.
        cache: Keys and values of one sequence.
    """

    length: int = 0
    cache: DynamicCache | None = None


@dataclass(frozen=True)
class LocalEngine:
    """Scores encoded prompts with a model in this process.

    Attributes:
        model: A causal LM in eval mode.
        pad_token_id: Any id; padding is masked.
        max_batch_tokens: Most tokens in one forward pass, the shared prefix not counted.
        shares_prefix: Whether the common prefix of all prompts is computed once.
    """

    model: PreTrainedModel
    pad_token_id: int = 0
    max_batch_tokens: int | None = None
    shares_prefix: bool = True

    def fingerprint(self) -> dict[str, Any]:
        """Everything except the prompts that a score depends on."""
        folder = Path(str(self.model.name_or_path))
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        environment = describe_environment()
        return {
            "location": str(folder),
            "files": [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files],
            "revision": hub_revision(self.model.config),
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "quantization": str(getattr(self.model.config, "quantization_config", None)),
            "shares_prefix": self.shares_prefix,
            "cpu": environment["hardware"]["cpu"],
            "gpus": environment["hardware"]["gpus"],
            "versions": environment["versions"],
            "version": __version__,
        }

    def score(
        self, batch: PromptBatch, batch_size: int, cache: ScoreCache | None = None
    ) -> TemplateScores:
        """Label scores of the examples."""
        description = batch.template.name
        return batch.template_scores(
            self.log_likelihoods(batch.rows, batch_size, description, cache)
        )

    def log_likelihoods(
        self,
        rows: Sequence[Sequence[Continuation]],
        batch_size: int,
        description: str = "scoring",
        cache: ScoreCache | None = None,
    ) -> NDArray[np.float64]:
        """Log-likelihoods of the continuations (arXiv:2005.14165, section 2.4).

        Args:
            rows: N rows of K continuations.
            batch_size: Most rows in one forward pass.
            description: Label of the progress bar.
            cache: Scores of batches that are already known.
        Returns:
            Sums over the tokens of each continuation, in nats, the softmax in float32, [N, K].
        """
        prefix = self.compute_prefix(rows)
        lengths = [sum(len(ids) - prefix.length for ids in distinct_inputs(row)) for row in rows]

        def score_batch(batch: list[int]) -> NDArray[np.float64]:
            return self._score_batch([rows[row] for row in batch], prefix)

        return run_batched(
            lengths, batch_size, score_batch, description, self.max_batch_tokens, cache
        )

    @torch.inference_mode()
    def compute_prefix(self, rows: Sequence[Sequence[Continuation]]) -> SharedPrefix:
        """Compute the keys and values of the tokens that all contexts begin with.

        Raises:
            UserError: If the prefix alone does not fit on the device.
        """
        if not self.shares_prefix or len(rows) < 2:
            return SharedPrefix()
        contexts = [option.context for row in rows for option in row]
        # The last token of a context predicts the first token after it: it stays in the batch.
        length = min(common_prefix_length(contexts), min(map(len, contexts)) - 1)
        if length < MIN_PREFIX_LENGTH:
            return SharedPrefix()
        cache = DynamicCache(config=self.model.config)
        try:
            self.model(
                input_ids=torch.from_numpy(contexts[0][None, :length]).to(self.model.device).long(),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        except torch.OutOfMemoryError as error:
            raise out_of_memory(f"the common prefix of all prompts, {length} tokens") from error
        is_filled = cache.get_seq_length() == length  # some models ignore the cache
        if is_filled and has_only_keys_and_values(cache):
            return SharedPrefix(length, cache)
        return SharedPrefix()

    @torch.inference_mode()
    def _score_batch(
        self, rows: Sequence[Sequence[Continuation]], prefix: SharedPrefix
    ) -> NDArray[np.float64]:
        """The log-likelihoods of one batch, [B, K]."""
        width = len(rows[0])
        sequences: list[tuple[int, ...]] = []  # S
        # Of every token to score: its sequence, the position that predicts it, its id, its cell.
        targets: list[tuple[int, int, int, int]] = []
        for number, row in enumerate(rows):
            inputs = distinct_inputs(row)
            for column, option in enumerate(row):
                ids, start = option.input_ids, len(option.context) - 1 - prefix.length
                place = next(i for i, other in enumerate(inputs) if other[: len(ids)] == ids)
                targets += [
                    (len(sequences) + place, start + step, token, number * width + column)
                    for step, token in enumerate(option.tokens)
                ]
            sequences += inputs
        sequence_index, position, token_id, cell = torch.tensor(targets).T
        positions, column_index = torch.unique(position, return_inverse=True)
        logits = self._logits(sequences, positions, prefix)
        if logits.shape[1] != len(positions):  # a few models ignore logits_to_keep
            column_index = position
        values = token_log_probabilities(logits, sequence_index, column_index, token_id)
        sums = torch.zeros(len(rows) * width, dtype=torch.float64)
        sums.index_add_(0, cell, values.double().cpu())
        if not sums.isfinite().all():
            raise UserError(
                "model: got log-probabilities that are not finite; expected whole weights and a "
                "precision that holds them. Try another quantization."
            )
        return sums.view(len(rows), width).numpy()

    def _logits(
        self, sequences: Sequence[tuple[int, ...]], positions: torch.Tensor, prefix: SharedPrefix
    ) -> torch.Tensor:
        """Logits of S sequences at U positions after the prefix, [S, U, V]."""
        lengths = torch.tensor([len(ids) - prefix.length for ids in sequences])
        width = int(lengths.max())
        input_ids = torch.full((len(sequences), width), self.pad_token_id)
        for number, ids in enumerate(sequences):
            input_ids[number, : lengths[number]] = torch.tensor(ids[prefix.length :])
        # Padding on the right is invisible to a causal model: scores depend on the lengths of
        # other sequences by rounding only.
        ends = prefix.length + lengths[:, None]
        mask = torch.arange(prefix.length + width)[None, :] < ends  # [S, P + T]
        cached: dict[str, Any] = {}
        if prefix.cache is not None:
            cached["past_key_values"] = expand_cache(prefix.cache, len(sequences))
        logits: torch.Tensor = self.model(
            input_ids=input_ids.to(self.model.device),
            attention_mask=mask.long().to(self.model.device),
            logits_to_keep=positions.to(self.model.device),
            use_cache=prefix.cache is not None,
            **cached,
        ).logits
        return logits


def distinct_inputs(row: Sequence[Continuation]) -> list[tuple[int, ...]]:
    """The inputs of a row without those that are prefixes of others."""
    inputs = sorted({option.input_ids for option in row})
    # Sorted, a prefix stands right before a sequence that it begins.
    return [a for a, b in pairwise([*inputs, ()]) if b[: len(a)] != a]


def token_log_probabilities(
    logits: torch.Tensor, row: torch.Tensor, column: torch.Tensor, token: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of M tokens, the softmax in float32, [M].

    Args:
        logits: [S, U, V].
        row: Index of each token along S, [M].
        column: Index along U, [M].
        token: Token ids, [M].
    """
    row, column, token = (index.to(logits.device) for index in (row, column, token))
    parts = []
    step = max(1, SOFTMAX_ELEMENTS // logits.shape[-1])
    for start in range(0, len(token), step):
        part = slice(start, start + step)
        scores = logits[row[part], column[part]].float()
        parts.append(scores.gather(1, token[part, None])[:, 0] - scores.logsumexp(dim=-1))
    return torch.cat(parts)

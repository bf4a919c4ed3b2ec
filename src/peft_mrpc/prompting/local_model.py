"""A causal LM in this process. It sees token ids only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from peft_mrpc import __version__
from peft_mrpc.environment import describe_environment
from peft_mrpc.interop.transformers_internals import hub_revision
from peft_mrpc.models.batched_inference import ScoreCache, run_batched
from peft_mrpc.prompting.generation import MAX_NEW_TOKENS
from peft_mrpc.prompting.loglikelihood import LogLikelihoodScorer
from peft_mrpc.prompting.prompt_encoder import PromptBatch
from peft_mrpc.prompting.scores import TemplateScores

# Greedy, and without the penalties that some checkpoints set.
GREEDY = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class LocalEngine:
    """Scores and continues encoded prompts.

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
        scorer = LogLikelihoodScorer(self.model, self.pad_token_id, self.shares_prefix)
        log_likelihoods = scorer.score(
            batch.rows, batch_size, self.max_batch_tokens, batch.template.name, cache
        )
        return batch.template_scores(log_likelihoods)

    @torch.inference_mode()
    def generate(self, batch: PromptBatch, batch_size: int) -> list[str]:
        """The most likely text after each prompt (greedy)."""
        contexts = [row[0].context for row in batch.rows]
        eos = self.model.generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or ())

        def generate_batch(rows: list[int]) -> NDArray[Any]:
            width = max(len(contexts[row]) for row in rows)
            # Padding on the left: the generated tokens follow the prompt.
            ids = torch.full((len(rows), width), self.pad_token_id)
            mask = torch.zeros_like(ids)
            for number, row in enumerate(rows):
                ids[number, width - len(contexts[row]) :] = torch.tensor(contexts[row])
                mask[number, width - len(contexts[row]) :] = 1
            generated: Any = self.model.generate(  # type: ignore[operator]
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                pad_token_id=self.pad_token_id,
                **GREEDY,
            )
            texts = []
            for tokens in generated[:, width:].tolist():
                length = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
                texts.append(batch.decode(tokens[:length], skip_special_tokens=True))
            return np.array(texts, dtype=object)[:, None]

        description = f"{batch.template.name}, generating"
        texts = run_batched([len(ids) for ids in contexts], batch_size, generate_batch, description)
        return [str(text) for (text,) in texts]

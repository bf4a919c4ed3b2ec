"""A causal LM in this process. It sees token ids only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from peft_mrpc import __version__
from peft_mrpc.environment import describe_environment
from peft_mrpc.interop.transformers_internals import hub_revision
from peft_mrpc.models.batched_inference import ScoreCache
from peft_mrpc.prompting.loglikelihood import LogLikelihoodScorer
from peft_mrpc.prompting.prompt_encoder import PromptBatch
from peft_mrpc.prompting.scores import TemplateScores


@dataclass(frozen=True)
class LocalEngine:
    """Scores encoded prompts.

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

"""What answers the questions of a hard prompt, and the classifier that it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_mrpc.data.examples import Example, Inputs, as_examples
from peft_mrpc.environment import describe_environment
from peft_mrpc.evaluation.thresholds import label_names_of
from peft_mrpc.models.batched_inference import ScoreCache, run_batched
from peft_mrpc.prompting.calibration import Calibration, Scores, labels_of, no_calibration
from peft_mrpc.prompting.loglikelihood import ContinuationScorer
from peft_mrpc.prompting.prompt_encoder import (
    ANSWER_TOKENS,
    PromptEncoder,
    Questions,
    Show,
    prompt_limit,
    show_nothing,
)
from peft_mrpc.prompting.templates import Template

# One answer of some words, not drawn, and as the model says it: checkpoints come with penalties.
GREEDY = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "repetition_penalty": 1.0}


class Engine(Protocol):
    """What answers questions: a model here, or one that is served elsewhere."""

    def identity(self) -> dict[str, Any]:
        """What of it a score depends on."""

    def score(self, asked: Questions, batch_size: int, kept: ScoreCache | None = None) -> Scores:
        """What a template says of the pairs."""

    def generate(self, asked: Questions, batch_size: int) -> list[str]:
        """The likeliest words after each prompt, one after the other."""


@dataclass(frozen=True)
class LocalEngine:
    """A causal LM on this process's device.

    Attributes:
        model: A causal LM in eval mode.
        tokenizer: Its tokenizer, with a chat template or without.
        max_length: Most tokens of a prompt; a longer one is an error.
        max_tokens: The most tokens in a forward pass, what is shared not counted.
        shares_prefix: Whether what all prompts begin with is computed once.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_tokens: int | None = None
    shares_prefix: bool = True

    def identity(self) -> dict[str, Any]:
        """What of it a score depends on: its revision, what it computes in, and on what."""
        revision = getattr(self.model.config, "_commit_hash", None)
        computed = [str(self.model.dtype), self.model.device.type]
        found = describe_environment()
        machine = [found["hardware"]["cpu"], found["hardware"]["gpus"]]
        known = {"revision": revision, "computed_in": computed, "machine": machine}
        return known | {"versions": found["versions"]}

    def encoder(self, template: Template, label_names: Sequence[str]) -> PromptEncoder:
        """What turns pairs into prompts by this template."""
        limit = prompt_limit(self.model.config, self.max_length)
        return PromptEncoder(self.tokenizer, template, label_names, limit)

    def score(self, asked: Questions, batch_size: int, kept: ScoreCache | None = None) -> Scores:
        """What a template says of the pairs."""
        encoder = self.encoder(asked.template, asked.label_names)
        rows = encoder.encode(asked.pairs, asked.shown)
        pad = self.tokenizer.pad_token_id or 0
        scorer = ContinuationScorer(self.model, pad, self.shares_prefix)
        found = scorer.score(rows, batch_size, self.max_tokens, asked.template.name, kept)
        return encoder.scores(found, rows)

    @torch.inference_mode()
    def generate(self, asked: Questions, batch_size: int) -> list[str]:
        """The likeliest words after each prompt, one after the other (temperature 0)."""
        encoder = self.encoder(asked.template, asked.label_names)
        contexts = [row[0].context for row in encoder.encode(asked.pairs, asked.shown)]
        pad = self.tokenizer.pad_token_id or 0

        def answer(rows: list[int]) -> NDArray[np.float64]:
            width = max(len(contexts[row]) for row in rows)
            # On the left: what is generated follows the prompt.
            ids = [[pad] * (width - len(contexts[row])) + list(contexts[row]) for row in rows]
            mask = [[0] * (width - len(contexts[row])) + [1] * len(contexts[row]) for row in rows]
            given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
            made: Any = self.model.generate(  # type: ignore[operator]
                **{name: tensor.to(self.model.device) for name, tensor in given.items()},
                **GREEDY,
                pad_token_id=pad,
            )
            # A batch ends with its longest answer.
            filled = np.full((len(rows), ANSWER_TOKENS), pad, dtype=np.float64)
            filled[:, : made.shape[1] - width] = made[:, width:].cpu().numpy()
            return filled

        lengths = [len(context) for context in contexts]
        generated = run_batched(lengths, batch_size, answer, f"{asked.template.name}, generating")
        ended = [self._until_end(ids) for ids in generated.astype(int).tolist()]
        return self.tokenizer.batch_decode(ended, skip_special_tokens=True)

    def _until_end(self, ids: list[int]) -> list[int]:
        """An answer's tokens up to the one that ends it; what is after it is padding."""
        ends = self.model.generation_config.eos_token_id
        known = {ends} if isinstance(ends, int) else set(ends or ())
        return ids[: next((n for n, token in enumerate(ids) if token in known), len(ids))]


@dataclass
class PromptClassifier:
    """An engine asked through one template or several.

    Attributes:
        engine: What answers.
        templates: The questions.
        labels: The C label names.
        show: Gives each pair the demonstrations that stand before it.
        calibration: Turns label scores into probabilities; None for the scores as they are.
        label_mass: For each template the mean probability that fell on the labels at all in the
            last `ask`; None where scores are no probabilities (the channel's, and
            length-normalized ones).
        threshold: Probability above which the last of two labels is predicted.
    """

    engine: Engine
    templates: Sequence[Template]
    labels: list[str]
    show: Show = show_nothing
    calibration: Calibration | None = None
    label_mass: dict[str, float | None] = field(default_factory=dict)
    threshold: float = 0.5

    def ask(
        self,
        pairs: Sequence[Example],
        batch_size: int,
        keep: Callable[[str], ScoreCache] | None = None,
    ) -> list[Scores]:
        """What each template says of the pairs.

        Args:
            pairs: N pairs.
            batch_size: Pairs in a forward pass.
            keep: Where the scores by a template of some name are found again.
        """
        shown = self.show(pairs)
        scores: list[Scores] = []
        for template in self.templates:
            kept = keep(template.name) if keep else None
            asked = Questions(template, self.labels, pairs, shown)
            scores.append(self.engine.score(asked, batch_size, kept))
            is_mass = template.direction == "direct" and not template.length_normalized
            mass = float(np.exp(scores[-1].labels).sum(axis=1).mean()) if is_mass else None
            self.label_mass[template.name] = mass
        return scores

    def label_scores(
        self,
        pairs: Sequence[Example],
        batch_size: int,
        keep: Callable[[str], ScoreCache] | None = None,
    ) -> NDArray[np.float64]:
        """Of what `ask` gives, the label scores alone, [T, N, C]."""
        return labels_of(self.ask(pairs, batch_size, keep))

    def predict_proba(self, inputs: Inputs, batch_size: int = 32) -> NDArray[np.float64]:
        """Label probabilities, [N, C], normalized over the labels, in the order of the inputs."""
        scores = self.ask(as_examples(inputs), batch_size)
        return (self.calibration or no_calibration(labels_of(scores))).classify(scores)

    def predict(self, inputs: Inputs, batch_size: int = 32) -> list[str]:
        """Predicted label names, [N], in the order of the inputs."""
        return label_names_of(self.predict_proba(inputs, batch_size), self.labels, self.threshold)

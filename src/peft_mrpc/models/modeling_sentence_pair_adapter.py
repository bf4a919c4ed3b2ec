"""Sentence-pair classifier that PEFT has adapted: base model, head and adapter.

The file is saved beside the adapter, with `modeling_sentence_pair.py`. It imports nothing else from
the package, so that transformers and PEFT load the folder with `trust_remote_code=True`. PEFT alone
cannot load it: it would give the base model a random head. That is why the folder has no
`adapter_config.json`.
"""

from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import load_peft_weights
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from .modeling_sentence_pair import (
    SentencePairConfig,
    SentencePairForSequenceClassification,
    mark_sentences,
)

# Arguments of `from_pretrained` that say where the adapter is; all others concern the base model.
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
)
# Of these, the ones that hold for the base model's repository too.
SHARED_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
# Arguments that the Auto classes add.
AUTO_ARGUMENTS = ("adapter_kwargs", "code_revision", "_from_auto", "_from_pipeline")


class SentencePairAdapterConfig(SentencePairConfig):
    """Configuration of an adapted sentence-pair classifier.

    Args:
        base_model_name_or_path: The base model: a Hub id or a directory.
        adapter: PEFT's configuration.
        quantization: Options of `BitsAndBytesConfig` for the base model; None for no quantization.
        kwargs: As for `SentencePairConfig`. With the pooling `native`, the head is that of the base
            model's architecture.
    """

    model_type = "sentence_pair_adapter"

    def __init__(
        self,
        base_model_name_or_path: str = "",
        adapter: dict[str, Any] | None = None,
        quantization: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base_model_name_or_path = base_model_name_or_path
        self.adapter = adapter or {}
        self.quantization = quantization
        super().__init__(**kwargs)


class SentencePairAdapterForSequenceClassification(PreTrainedModel):
    """A base model with its head inside PEFT's wrapper.

    Args:
        config: The configuration.
        adapted: PEFT's model.
    """

    config_class = SentencePairAdapterConfig
    base_model_prefix = "adapted"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: SentencePairAdapterConfig, adapted: PeftModel) -> None:
        super().__init__(config)
        self.adapted = adapted

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Load the base model, add its head, and load the adapter with the head's weights.

        Args:
            name: Directory or Hub id of the adapter.
            args: Ignored.
            kwargs: `config`, `base_model_name_or_path` to load the base model from another place,
                arguments for the Hub, and arguments of the base model's `from_pretrained`.
        Raises:
            ValueError: If weights of the adapter or the head are missing.
        """
        hub = {key: kwargs.pop(key) for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        for key in (*HUB_ARGUMENTS, *AUTO_ARGUMENTS):
            kwargs.pop(key, None)
        config = kwargs.pop("config", None) or cls.config_class.from_pretrained(name, **hub)
        base = kwargs.pop("base_model_name_or_path", None) or config.base_model_name_or_path
        kwargs |= {key: value for key, value in hub.items() if key in SHARED_ARGUMENTS}
        if config.quantization is not None:
            quantization = BitsAndBytesConfig.from_dict(dict(config.quantization))
            kwargs.setdefault("quantization_config", quantization)
        model = _load_base(base, config, kwargs)
        options = PeftConfig.from_peft_type(**{**config.adapter, "inference_mode": True})
        weights = load_peft_weights(str(name), device="cpu", **hub)
        adapted = get_peft_model(model, options)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if missing := sorted(expected.keys() - weights.keys()):
            raise ValueError(f"{name}: the adapter lacks the weights {', '.join(missing[:3])}")
        set_peft_model_state_dict(adapted, weights)
        return cls(config, adapted).eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Compute logits, [B, C], and the loss if there are labels.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T].
            token_type_ids: [B, T], for base models that have them.
            labels: [B].
            kwargs: More arguments of the base model.
        """
        if self.config.pooling != "native":
            # Now: a soft prompt replaces the ids by embeddings before the head's model sees them.
            kwargs["sentence_ids"] = mark_sentences(input_ids, self.config.special_ids)
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        output: SequenceClassifierOutput = self.adapted(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs
        )
        return output

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, **kwargs: Any
    ) -> None:
        """Save the adapter, its configuration and this code.

        Args:
            save_directory: The directory.
            kwargs: Arguments of PEFT's `save_pretrained`.
        """
        self.adapted.save_pretrained(save_directory, **kwargs)
        (Path(save_directory) / "adapter_config.json").unlink()
        name = type(self).__name__
        self.config.architectures = [name]
        module = type(self).__module__.rpartition(".")[2]
        self.config.auto_map = {"AutoModelForSequenceClassification": f"{module}.{name}"}
        self.config.save_pretrained(save_directory)


def _load_base(name: str, config: SentencePairAdapterConfig, options: dict[str, Any]) -> Any:
    """Load the base model; the adapter holds all weights of its head."""
    encoder_config = config.encoder_config()
    if config.pooling == "native":
        return AutoModelForSequenceClassification.from_pretrained(
            name, config=encoder_config, ignore_mismatched_sizes=True, **options
        )
    encoder = AutoModel.from_pretrained(name, config=encoder_config, **options)
    return SentencePairForSequenceClassification(config, encoder)


SentencePairAdapterConfig.register_for_auto_class()
SentencePairAdapterForSequenceClassification.register_for_auto_class(
    "AutoModelForSequenceClassification"
)

"""From a request to a model to be trained, with every check that comes before its weights."""

from typing import Any

from transformers import PretrainedConfig

from peft_mrpc.data.examples import DataSplits
from peft_mrpc.errors import UserError, raise_faults
from peft_mrpc.methods.compatibility import validate_compatibility
from peft_mrpc.methods.peft_adapters import init_from_shapes_only, set_tokenizer
from peft_mrpc.methods.registry import scale_learning_rates
from peft_mrpc.models.architecture import has_layers
from peft_mrpc.models.classifier import Classifier
from peft_mrpc.models.hub import ModelSource
from peft_mrpc.models.loading import init_classifier, load_classification_model, load_config
from peft_mrpc.training.build_trainer import pair_length
from peft_mrpc.training.callbacks import validate_attention
from peft_mrpc.training.head_layer import settle_reading
from peft_mrpc.training.request import TrainJob


def build_classifier(request: TrainJob, source: ModelSource, data: DataSplits) -> Classifier:
    """Load model and tokenizer and make the model trainable by the method."""
    source, tokenizer = settle_reading(request, source)
    fit_rates(request, load_config(source))
    max_length = check_request(request, source, tokenizer)
    quantization = request.config.quantization
    model = load_classification_model(
        source,
        data.label_names,
        tokenizer,
        request.config.pooling,
        quantization=quantization,
        dropout=request.config.dropout,
        prompt_position=request.config.prompt_position,
    )
    if "layer_decay" in request.recipe_rates and not has_layers(model):
        request.config.layer_decay = None  # ALBERT's layers are one
    set_tokenizer(request.options, source.location)
    adapted = request.method.apply(model, request.options)
    validate_attention(adapted, request.config.attention)
    wanted = request.config.threshold
    threshold = 0.5 if wanted == "auto" else float(wanted)  # chosen once there is a model
    labels = list(data.label_names)
    return Classifier(
        adapted, tokenizer, labels, max_length, quantization, threshold, source.head_layer
    )


def check_request(request: TrainJob, source: ModelSource, tokenizer: Any) -> int:
    """Check the request against the model, before its weights are loaded.

    Returns:
        The most tokens that a pair may have.
    Raises:
        UserError: For what does not stand together.
    """
    model_config = load_config(source)
    max_length = pair_length(request, model_config, tokenizer)
    raise_faults(
        validate_compatibility(
            model_config,
            request.config.method,
            request.options,
            pooling=request.config.pooling,
            prompt_position=request.config.prompt_position,
            quantization=request.config.quantization,
            gradient_checkpointing=bool(request.arguments.gradient_checkpointing),
        )
    )
    return max_length


def check_fit(request: TrainJob, source: ModelSource) -> None:
    """Adapt the model's shapes alone by the method: no weights, no training.

    Raises:
        UserError: If the method's options do not fit them.
    """
    source, tokenizer = settle_reading(request, source)
    check_request(request, source, tokenizer)
    empty = init_classifier(load_config(source), request.config.pooling)
    set_tokenizer(request.options, source.location)
    request.method.apply(empty, init_from_shapes_only(request.options))


def fit_rates(request: TrainJob, model_config: PretrainedConfig) -> None:
    """Set the learning rates that are the recipe's to what they are for this model's size.

    Raises:
        UserError: If its configuration does not say its size.
    """
    text = model_config.get_text_config()  # of a model of images and text, too
    width, depth = (getattr(text, name, None) for name in ("hidden_size", "num_hidden_layers"))
    if not (isinstance(width, int) and isinstance(depth, int)):
        raise UserError(
            f"--model: a {model_config.model_type} says no hidden_size or num_hidden_layers in its "
            "configuration; expected one encoder or decoder of text."
        )
    fitted = scale_learning_rates(request.config.method, width, depth)
    for name in request.recipe_rates & set(fitted):
        owner = request.arguments if name == "learning_rate" else request.config
        setattr(owner, name, fitted[name])

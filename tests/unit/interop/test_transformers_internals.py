"""A release of transformers that changes one of these private parts fails here first."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    DynamicCache,
    EarlyStoppingCallback,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_mrpc.interop.transformers_internals import (
    BERT_ATTENTIONS,
    QUANTIZATION_ATTRIBUTES,
    attn_implementation,
    bert_first_token_attention,
    builds_parameter_groups,
    copy_quantization_state,
    early_stopping_patience,
    expand_cache,
    has_only_keys_and_values,
    hub_revision,
    is_checkpointed,
    keep_4bit_weights_trainable,
    length_grouped_order,
    mark_dequantized,
    training_has_ended,
    use_one_gpu,
)
from peft_mrpc.training.trainer import ClassificationTrainer

SIZES = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 8}


def test_an_expanded_cache_continues_each_sequence_and_leaves_the_original() -> None:
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    prefix, ends = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5], [6, 7]])
    with torch.inference_mode():
        cache = model(prefix, past_key_values=DynamicCache(config=config)).past_key_values
        assert has_only_keys_and_values(cache)
        logits = model(ends, past_key_values=expand_cache(cache, 2)).logits
        whole = model(torch.cat([prefix.expand(2, -1), ends], dim=1)).logits[:, 3:]
    assert torch.allclose(logits, whole, atol=1e-6)
    assert cache.get_seq_length() == 3 and cache.layers[0].keys.shape[0] == 1


def test_the_hub_revision_is_that_of_the_configuration() -> None:
    config = PretrainedConfig()
    assert hub_revision(config) is None
    config._commit_hash = "abc"
    assert hub_revision(config) == "abc"


def tiny_bert() -> BertModel:
    return BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))


def test_attn_implementation_follows_the_public_setter() -> None:
    model = tiny_bert()
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attn_implementation(model.config) == name


def test_a_checkpointed_layer_is_known_as_such() -> None:
    model = tiny_bert()
    assert not is_checkpointed(model.encoder.layer[0])
    model.gradient_checkpointing_enable()
    assert is_checkpointed(model.encoder.layer[0])


@pytest.mark.parametrize("attention", BERT_ATTENTIONS)
def test_the_attention_of_the_first_token_is_that_of_bert(attention: str) -> None:
    model = tiny_bert().eval()
    model.set_attn_implementation(attention)
    module, hidden = model.encoder.layer[0].attention.self, torch.rand(2, 5, 8)
    mask = torch.zeros(2, 1, 5, 5)
    mask[1, :, :, 3:] = torch.finfo(torch.float32).min
    expected = module(hidden, mask)[0][:, :1]
    assert torch.allclose(bert_first_token_attention(module, hidden, mask), expected, atol=1e-6)


def test_peft_reads_the_copied_quantization_attributes() -> None:
    from peft import prepare_model_for_kbit_training

    quantized, wrapper = tiny_bert(), tiny_bert()
    quantized.is_loaded_in_4bit = True
    copy_quantization_state(quantized, wrapper)
    assert wrapper.is_loaded_in_4bit and not wrapper.is_loaded_in_8bit
    # PEFT casts half-precision parameters to fp32 in quantized models.
    prepare_model_for_kbit_training(wrapper.half(), use_gradient_checkpointing=False)
    assert {parameter.dtype for parameter in wrapper.parameters()} == {torch.float32}


def test_a_dequantized_model_can_be_saved(tmp_path: Path) -> None:
    class Quantizer:
        def is_serializable(self, **_: object) -> bool:
            return False

    model: PreTrainedModel = tiny_bert()
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = Quantizer()
    mark_dequantized(model)
    model.save_pretrained(tmp_path)
    assert BertModel.from_pretrained(tmp_path).config.hidden_size == 8
    assert all(hasattr(model, name) for name in QUANTIZATION_ATTRIBUTES[-1:])


def test_disables_the_kernel_of_bitsandbytes_without_gradients() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(8, 8)
    assert hasattr(layer, "support_avx512bf16_for_cpu")
    layer.support_avx512bf16_for_cpu = True
    keep_4bit_weights_trainable(nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False


def test_one_gpu_is_used(tmp_path: Path) -> None:
    training_args = TrainingArguments(output_dir=str(tmp_path))
    training_args._n_gpu = 4
    use_one_gpu(training_args)
    assert training_args.n_gpu == 1


def test_a_checkpoint_records_its_early_stopping_patience(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    for callbacks, patience in (([EarlyStoppingCallback(3)], 3), ([], None)):
        TrainerState(stateful_callbacks=callbacks).save_to_json(str(path))
        assert early_stopping_patience(json.loads(path.read_text("utf-8"))) == patience


def test_batches_have_examples_of_similar_length() -> None:
    lengths = [*range(1, 9)] * 8
    order = length_grouped_order(lengths, 4, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(64))
    batches = [[lengths[row] for row in order[start : start + 4]] for start in range(0, 64, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) < 64


@pytest.mark.parametrize(("name", "builds"), [("adamw_torch", False), ("lomo", True)])
def test_an_optimizer_that_takes_the_model_builds_its_own_groups(name: str, builds: bool) -> None:
    options = {"model": nn.Linear(1, 1)} if name == "lomo" else {"lr": 1e-3}
    assert builds_parameter_groups(torch.optim.AdamW, options) is builds


def test_an_optimizer_factory_builds_its_own_groups() -> None:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters())

    assert builds_parameter_groups(build, {})


def test_the_last_checkpoint_records_that_the_training_ended(tmp_path: Path) -> None:
    control = TrainerControl()
    state = TrainerState(stateful_callbacks=[control])
    for has_ended in (False, True):
        control.should_training_stop = has_ended
        state.stateful_callbacks["TrainerControl"] = control.state()
        state.save_to_json(str(tmp_path / "state.json"))
        assert training_has_ended(json.loads((tmp_path / "state.json").read_text())) is has_ended


def test_the_trainer_calls_its_private_methods_that_ours_overrides() -> None:
    private = [name for name in vars(ClassificationTrainer) if re.match("_[a-z]", name)]
    overridden = [name for name in private if hasattr(Trainer, name)]
    assert overridden == [
        "_prepare_for_training",
        "_save",
        "_load_from_checkpoint",
        "_load_best_model",
        "_get_train_sampler",
    ]
    source = inspect.getsource(Trainer)
    assert [name for name in overridden if f"self.{name}" not in source] == []

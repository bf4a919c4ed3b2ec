"""Jobs: splitting mixed options, and deciding everything that they leave open."""

import dataclasses
from typing import Any

import pytest
from transformers import CLIPConfig, CLIPTextConfig, ResNetConfig

from peft_mrpc import TrainConfig, UserError
from peft_mrpc.config import default_output_dir
from peft_mrpc.training.job import ResolvedJob, TrainJob, convert_options
from peft_mrpc.training.resolve import BaseModel, is_symmetric, load_base_model, resolve

LABELS = ["not_equivalent", "equivalent"]


def resolve_for(model: str, method: str = "lora", **options: Any) -> ResolvedJob:
    job = TrainJob(TrainConfig(method=method, model=model)).with_options(**options)
    return resolve(job, load_base_model(job.config), LABELS)


def test_options_are_split_by_their_owner() -> None:
    options = {"learning_rate": 1e-3, "r": 4, "lora_alpha": 8}
    assert convert_options("lora", options) == ({"learning_rate": 1e-3}, {"r": 4, "lora_alpha": 8})


def test_options_are_converted_to_the_types_of_their_fields() -> None:
    options = {"r": "8", "target_modules": {"query"}, "bf16": "false", "seed": None}
    training, method = convert_options("lora", options)
    assert training == {"bf16": False, "seed": None}
    assert method == {"r": 8, "target_modules": ["query"]}
    with pytest.raises(UserError, match="r: got 'many'; expected a valid integer"):
        convert_options("lora", {"r": "many"})


def test_every_unknown_option_is_reported() -> None:
    with pytest.raises(UserError) as error:
        convert_options("full", {"r": 4, "lerning_rate": 1, "pooling": "cls"})
    assert [fault.partition(":")[0] for fault in error.value.faults] == [
        *("r", "lerning_rate", "pooling")
    ]


def test_the_recipe_fills_what_the_user_leaves_open(tiny_bert: str) -> None:
    resolved = resolve_for(tiny_bert)
    assert resolved.config.pooling == "aligned" and resolved.config.dropout == 0
    assert resolved.config.swap_sentences == "true"
    assert resolved.training_args.num_train_epochs == 5
    assert resolved.method_options.r == 6
    chosen = resolve_for(tiny_bert, pooling="cls", num_train_epochs=2, r=3, dropout=0.2)
    assert chosen.config.pooling == "cls" and chosen.config.dropout == 0.2
    assert chosen.training_args.num_train_epochs == 2 and chosen.method_options.r == 3
    assert chosen.explicit == {"method", "model", "pooling", "num_train_epochs", "r", "dropout"}


def test_removed_recipe_values_have_the_libraries_defaults(tiny_bert: str) -> None:
    job = TrainJob(
        TrainConfig(method="full", model=tiny_bert),
        training_arguments={"learning_rate": None},
        removed=frozenset({"layer_decay", "pooling"}),
    )
    resolved = resolve(job, load_base_model(job.config), LABELS)
    assert resolved.config.layer_decay is None and resolved.config.pooling == "native"
    assert resolved.training_args.learning_rate == 5e-5  # transformers'


def test_resolving_leaves_the_job_as_it_was(tiny_bert: str) -> None:
    job = TrainJob(TrainConfig(method="full", model=tiny_bert))
    base = load_base_model(job.config)
    first, second = resolve(job, base, LABELS), resolve(job, base, LABELS)
    assert first.config == second.config and job == dataclasses.replace(job)
    assert job.config.pooling is None and first.config.pooling == "aligned"


def test_learning_rates_of_a_multimodal_configuration_are_its_texts(tiny_bert: str) -> None:
    base = load_base_model(TrainConfig(model=tiny_bert))
    job = TrainJob(TrainConfig(method="bitfit", pooling="cls", model=tiny_bert))
    clip = CLIPConfig(text_config=CLIPTextConfig(hidden_size=768).to_dict())
    resolved = resolve(job, BaseModel(base.source, clip, base.tokenizer), LABELS)
    assert resolved.config.head_learning_rate == pytest.approx(1e-3 / 2)
    with pytest.raises(UserError, match="model: got a resnet"):
        resolve(job, BaseModel(base.source, ResNetConfig(), base.tokenizer), LABELS)


def test_symmetric_labels_are_recognized() -> None:
    assert is_symmetric(LABELS)
    assert is_symmetric(["different", "same thing"])
    assert not is_symmetric(["no", "yes"])
    assert not is_symmetric(["not_entailment", "entailment"])
    assert not is_symmetric(["different", "similar", "same"])


def test_the_default_directory_names_data_model_and_method() -> None:
    data = {"train": [("a", "b", "c")]}
    assert str(default_output_dir("lora", "owner/name", data)) == "runs/in_memory-name-lora"

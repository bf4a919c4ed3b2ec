from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from peft_mrpc.cli.flags import recipe_to_flags
from peft_mrpc.config import TRAIN_DEFAULTS, TrainConfig
from peft_mrpc.data.loading import load_data
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS, load_default_recipe, scale_learning_rates
from peft_mrpc.models.hub import resolve_model
from peft_mrpc.training.build_model import build_classifier
from peft_mrpc.training.request import parse_request


def test_recipe_is_the_methods_default_and_flags_override_it(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: lora\nlearning_rate: 2e-5\nr: 4\nfp16: false\n")
    request = parse_request(["--config", str(recipe), "--num_train_epochs", "7"])
    assert request.config.method == "lora"
    assert request.arguments.learning_rate == 2e-5  # PyYAML alone leaves this a string
    assert request.arguments.num_train_epochs == 7
    assert request.options.r == 4
    assert request.options.lora_alpha == load_default_recipe("lora")["lora_alpha"]
    assert parse_request(["--config", str(recipe), "--r", "2"]).options.r == 2


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_that_parses(name: str) -> None:
    request = parse_request(["--method", name])
    assert request.config.method == name
    assert request.arguments.learning_rate == float(load_default_recipe(name)["learning_rate"])


def test_methods_and_recipes_and_help_name_the_same_set() -> None:
    said = TrainConfig.__dataclass_fields__["method"].metadata["help"]
    assert set(said.replace(" or ", ", ").split(", ")) == set(METHODS)
    folder = Path(__file__).parents[3] / "src" / "peft_mrpc" / "recipes"
    names = {path.stem for path in folder.glob("*.yaml")}
    assert names and names == set(METHODS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--methd", "lora"], "--methd: got an unknown flag. Did you mean 'method'?"),
        (["--learning_rat", "1"], "Did you mean 'learning_rate'?"),
        (["--method", "loar"], "Did you mean 'lora'?"),
        (["--r", "8"], "--r: got an option of vera, lora, dora and oft; drop it here."),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--method", "lora", "--r", "many"], "--r: got 'many'; expected int."),
        (["--push_to_hub"], "--push_to_hub: got no --hub_model_id"),
        (["--hub_token", "hf_secret"], "--hub_token: got a token"),
        (["--max_length", "3"], "--max_length: got 3"),
        (["--pad_to_multiple_of", "0"], "--pad_to_multiple_of: got 0"),
        (["stray"], "got 'stray'; expected a flag"),
        (["--config", "no/such.yaml"], "--config: got 'no/such.yaml'"),
        (["--weight_decay", "-1"], "--weight_decay: got -1.0; expected 0 or more."),
        (["--adam_beta2", "1"], "--adam_beta2: got 1.0; expected 0 or more and below 1."),
        (["--adam_epsilon", "nan"], "--adam_epsilon: got nan; expected 0 or more."),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers: got -1; expected 0"),
        (["--data_seed", "-1"], "--data_seed: got -1; expected 0 to 4294967295."),
        (["--optim", "adamw_torch_xla"], "--optim: got adamw_torch_xla, which cannot be built: "),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "--lr_scheduler_type: got cosine_with_min_lr, which cannot be built: One of min_lr",
        ),
        (
            ["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": "x"}'],
            '--lr_scheduler_type: got polynomial with --lr_scheduler_kwargs {"power": "x"}, which',
        ),
        (["--optim_args", "x"], "--optim: got adamw_torch_fused with --optim_args x, which cannot"),
        (["--lr_scheduler_kwargs", "no.json"], "--lr_scheduler_kwargs: got 'no.json'; expected"),
        (["--lr_scheduler_kwargs", "{min_lr: 1}"], "train: got a mapping that is not JSON: "),
    ],
)
def test_wrong_flags_are_named_with_the_nearest_right_one(argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_request(argv)
    assert said in str(caught.value)
    assert "hf_secret" not in str(caught.value)


def test_every_unknown_flag_is_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_request(["--learning_rat", "1", "--methd", "x"])
    assert len(caught.value.faults) == 2


def test_a_wrong_value_does_not_hide_an_unknown_flag() -> None:
    with pytest.raises(UserError) as caught:
        parse_request(["--methd", "x", "--learning_rate", "fast", "--r", "8"])
    value, *others = caught.value.faults
    assert "invalid float value: 'fast'" in value
    assert others == [
        "--methd: got an unknown flag. Did you mean 'method'?",
        "--r: got an option of vera, lora, dora and oft; drop it here.",
    ]


def test_words_and_mappings_of_a_recipe_reach_the_trainer(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "save_strategy: no\neval_strategy: no\nactivation_cache: off\ngradient_checkpointing: no\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\n"
    )
    request = parse_request(["--config", str(recipe)])
    assert request.arguments.save_strategy == request.arguments.eval_strategy == "no"
    assert request.arguments.gradient_checkpointing is False
    assert request.config.activation_cache == "off"
    assert request.arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_schedules_that_go_by_a_metric_are_taken() -> None:
    for name in ("reduce_lr_on_plateau", "greedy"):
        request = parse_request(["--lr_scheduler_type", name, "--eval_strategy", "epoch"])
        assert request.arguments.lr_scheduler_type == name


def test_a_null_takes_the_line_of_the_methods_recipe_away(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: full\nlayer_decay: null\nhead_learning_rate: null\nseeds: null\n")
    request = parse_request(["--config", str(recipe)])
    assert request.config.layer_decay is None and request.config.head_learning_rate is None
    assert request.recipe_rates == {"learning_rate"}
    assert parse_request(["--method", "full"]).config.layer_decay is not None


def test_a_null_leaves_what_would_hold_without_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    names = ("pooling", "head_layer", "threshold", "num_train_epochs", "optim", "warmup_steps")
    recipe.write_text("method: lora\n" + "".join(f"{name}: null\n" for name in names))
    request = parse_request(["--config", str(recipe)])
    assert request.config.pooling == TRAIN_DEFAULTS["pooling"]
    assert request.arguments.num_train_epochs == 3 and request.arguments.warmup_steps == 0
    recipe.write_text("method: layer_freeze\nr: null\nmethod2: null\nlayer_decay: null\n")
    with pytest.raises(UserError) as said:
        parse_request(["--config", str(recipe)])
    assert f"{recipe}: r: got an option of" in str(said.value)
    assert f"{recipe}: method2: got an unknown flag." in str(said.value)
    assert "layer_decay" not in str(said.value)


def test_dashes_are_underscores_in_every_flag(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("lora_alpha: 3\n")
    flags = ["--method", "lora", "--output-dir", "one/two", f"--config={recipe}"]
    request = parse_request([*flags, "--num-train-epochs", "7", "--lora-dropout", "0.5"])
    assert request.output_dir == Path("one/two") and request.options.lora_alpha == 3
    assert request.arguments.num_train_epochs == 7 and request.options.lora_dropout == 0.5


def test_a_recipe_that_says_a_thing_twice_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: lora\nr: 4\nmethod: bitfit\n")
    with pytest.raises(UserError, match="not valid YAML: got the key 'method' twice, line 3"):
        parse_request(["--config", str(recipe)])


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "rmsprop", "adagrad", "adamw_torch_fused"])
def test_optimizers_that_can_be_built_are_taken(optim: str) -> None:
    assert parse_request(["--optim", optim]).arguments.optim == optim


def test_a_recipe_becomes_command_line_tokens() -> None:
    assert recipe_to_flags({"a": None, "b": True, "c": [1, 2], "d": {"e": 2e-5}}) == [
        "--b=true",
        "--c",
        "1",
        "2",
        '--d={"e": 2e-05}',
    ]


def test_a_recipes_rates_are_fitted_to_the_models_size() -> None:
    # A tiny model and MiniLM, where they were found; bert-base; an 8 B LLaMA.
    recipe = load_default_recipe("lora")
    for width, factor in ((16, 1), (384, 1), (768, 0.5), (4096, 0.09375)):
        assert scale_learning_rates("lora", width, 6) == {
            "learning_rate": pytest.approx(float(recipe["learning_rate"]) * factor),
            "head_learning_rate": pytest.approx(float(recipe["head_learning_rate"]) * factor),
        }
    prompt = load_default_recipe("prompt_tuning")
    rates = scale_learning_rates("prompt_tuning", 768, 12)
    assert rates["learning_rate"] == float(prompt["learning_rate"])
    assert rates["head_learning_rate"] == pytest.approx(float(prompt["head_learning_rate"]) / 2)
    # From the top of the encoder to its bottom a rate falls alike, whatever the depth.
    decay = float(load_default_recipe("full")["layer_decay"])
    for depth in (6, 12, 24):
        found = scale_learning_rates("full", 384, depth)["layer_decay"]
        assert found**depth == pytest.approx(decay**6)


def test_a_rate_that_was_given_is_taken_as_it_is(
    data_flags: list[str], tmp_path: Path, tiny_bert: str
) -> None:
    config = BertConfig(  # as wide as bert-base
        vocab_size=64,
        hidden_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=32,
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "wide")
    (tmp_path / "mine.yaml").write_text("method: full\nhead_learning_rate: 3e-3\n")
    flags = ["--model", str(tmp_path / "wide"), *data_flags]
    flags += ["--config", str(tmp_path / "mine.yaml")]
    request = parse_request(flags)
    rate = float(load_default_recipe("full")["learning_rate"])
    for _ in range(2):  # each seed builds its own
        build_classifier(request, resolve_model(flags[1]), load_data(request.data))
        assert request.arguments.learning_rate == pytest.approx(rate / 2)
        assert request.config.head_learning_rate == 3e-3
    request = parse_request([*flags, "--learning_rate", "1e-5"])
    build_classifier(request, resolve_model(flags[1]), load_data(request.data))
    assert request.arguments.learning_rate == 1e-5

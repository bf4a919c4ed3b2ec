"""Parsing of the commands that train: a TrainJob with the options that were given, typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from peft_mrpc.__main__ import COMMANDS
from peft_mrpc.cli.train_arguments import (
    parse_command_with_job,
    parse_train_command,
)
from peft_mrpc.config import DataConfig, TrainConfig, TuneConfig
from peft_mrpc.errors import UserError
from peft_mrpc.methods.registry import METHODS
from peft_mrpc.options import packaged_recipe
from peft_mrpc.serialization import dump_yaml


def test_a_job_holds_the_explicit_options_only() -> None:
    job = parse_train_command(
        "--method lora --model m --dataset builtin:pairs --learning_rate 2e-4 --r 8 "
        "--target_modules query value --output-dir one/two --seeds 1,2".split()
    )
    assert job.config == TrainConfig(method="lora", model="m", seeds=(1, 2))
    assert job.data == DataConfig("builtin:pairs")
    assert job.training_arguments == {"learning_rate": 2e-4}
    assert job.method_options == {"r": 8, "target_modules": ["query", "value"]}
    assert job.output_dir == Path("one/two")
    assert parse_train_command([]).output_dir is None


def test_words_and_mappings_of_a_file_keep_their_types(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "method: lora\nsave_strategy: no\ngradient_checkpointing: no\nlearning_rate: 2e-5\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\n"
        "rank_pattern: {query: 2}\nthreshold: 0.7\nswap_sentences: true\n"
    )
    job = parse_train_command(["--config", str(path)])
    assert job.training_arguments == {
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
    }
    assert job.method_options == {"rank_pattern": {"query": 2}}
    assert (job.config.threshold, job.config.swap_sentences) == ("0.7", "true")


def test_a_null_of_a_file_removes_the_line_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\nlayer_decay: null\nwarmup_steps: null\nr: null\nseeds: null\n")
    job = parse_train_command(["--config", str(path)])
    assert job.removed == {"layer_decay", "seeds"}
    assert job.training_arguments == {"warmup_steps": None}
    assert job.method_options == {"r": None}
    job = parse_train_command(["--config", str(path), "--layer_decay", "0.5", "--r", "2"])
    assert job.removed == {"seeds"} and job.config.layer_decay == 0.5
    assert job.method_options == {"r": 2}


def test_a_seed_of_the_command_line_replaces_the_seeds_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("seeds: [1, 2]\n")
    job = parse_train_command(["--config", str(path), "--seed", "3"])
    assert job.config.seeds is None and job.training_arguments == {"seed": 3}


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        ("--methd lora", "--methd: got an unknown option. Did you mean 'method'?"),
        (
            "--learning_rat 1",
            "--learning_rat: got an unknown option. Did you mean 'learning_rate'?",
        ),
        ("--r 8", "--r: got an option of vera, lora, dora and oft; remove it."),
        ("--learning_rate fast", "--learning_rate: got 'fast'; expected a valid number."),
        ("--model_name_or_path x", "--model_name_or_path: got an unknown option. Use --model."),
        ("--task_name mrpc", "--task_name: got an unknown option. Use --dataset."),
        ("--epochs 3", "--epochs: got an unknown option. Use --num_train_epochs."),
        (
            "--batch_size 4",
            "--batch_size: got an unknown option. Use --per_device_train_batch_size.",
        ),
        ("--load_in_4bit", "--load_in_4bit: got an unknown option. Use --quantization nf4."),
        ("--lora_r 8", "--lora_r: got an unknown option. Use --r."),
        *(
            (f"--{name} {10**30}", f"--{name}: got {10**30}; expected an integer of 64 bits.")
            for name in ("seed", "max_length", "per_device_train_batch_size", "max_steps")
        ),
        ("--method lora --r many", "--r: got 'many'; expected a valid integer."),
        (
            "--parallelism_config x",
            "--parallelism_config: got an unknown option. Did you mean 'runtime_config'?",
        ),
        ("stray", "got 'stray'; expected an option (--name value)."),
    ],
)
def test_wrong_options_are_refused_with_the_nearest_name(argv: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_train_command(argv.split())
    assert caught.value.faults == (fault,)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--method loar", "Did you mean 'lora'?"),
        ("--method lora dora", "got 2 words; expected one"),
    ],
)
def test_a_wrong_method_is_refused_first(argv: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_train_command(argv.split())
    assert message in str(caught.value)


def test_other_commands_add_their_configs() -> None:
    job, (config,) = parse_command_with_job(
        ["--num_trials", "3", "--seed", "1"], "tune", [TuneConfig]
    )
    assert config == TuneConfig(num_trials=3)
    assert job.training_arguments == {"seed": 1}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_whose_options_exist(name: str, tmp_path: Path) -> None:
    recipe = packaged_recipe(name)
    assert recipe["method"] == name
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml(recipe))
    job = parse_train_command(["--config", str(path)])
    assert job.training_arguments["learning_rate"] == recipe["learning_rate"]


def test_the_help_of_method_names_every_method() -> None:
    text = TrainConfig.__dataclass_fields__["method"].metadata["help"]
    assert set(text.replace(" or ", ", ").split(", ")) == set(METHODS)


def help_text(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_train_command([*argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_short_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_text(capsys, "--help").splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    assert any("--learning_rate" in line and "0.0004" in line for line in lines)


def test_help_all_shows_every_training_argument(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, "--help_all")
    assert "--adam_beta1" in text and "--pooling" in text


def test_help_of_a_method_shows_its_options_with_its_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_text(capsys, "--method", "lora", "--help")
    assert "options of lora:" in text
    rank = next(line for line in text.split("--") if line.startswith("r "))
    assert f"default: {packaged_recipe('lora')['r']}" in " ".join(rank.split())


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_imports_neither_torch_nor_transformers(command: str) -> None:
    script = (
        f"import sys; sys.argv = ['peft-mrpc', {command!r}, '--help']\n"
        "from peft_mrpc.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'transformers', 'peft', 'datasets', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stdout + done.stderr

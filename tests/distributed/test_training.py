"""Two processes train as one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROWS, run_command, run_script, write_csv
from safetensors.torch import load_file
from training_recorders import BY_TURNS, GRADUAL

from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main

pytestmark = pytest.mark.distributed

HEADER = ("sentence1", "sentence2", "label")
# Eight examples, half of each label.
HALVES = [row for row in ROWS if row[2] == "equivalent"][:4]
HALVES += [row for row in ROWS if row[2] != "equivalent"][:4]
RHO = 0.2
# One plain step of gradient descent shows the gradient.
DESCENT: dict[str, Any] = {
    **{"optim": "sgd", "warmup_steps": 0, "max_grad_norm": 0.0, "dropout": 0.0, "bf16": False},
    **{"method": "full", "train_sampling_strategy": "sequential"},
}
SAM_STEPS = {
    **DESCENT,
    **{"lr_scheduler_type": "constant", "learning_rate": 0.1, "head_learning_rate": 0.1},
    **{"weight_decay": 0.0, "swap_sentences": "false", "sam_rho": RHO},
}
ALL_LOSSES = {"label_smoothing_factor": 0.1, "class_weights": "0.7,0.3"}
LOSS_STEP = {
    **{**DESCENT, **ALL_LOSSES, "learning_rate": 1.0, "head_learning_rate": 1.0},
    **{"max_steps": 1, "layer_decay": 1.0},
}


def test_two_processes_train_and_write_one_run(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, "--num_unfrozen_layers", "1"]
    done = run_command("train", *flags, "--output_dir", str(tmp_path / "run"), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    run = load_run(tmp_path / "run")
    assert run.record["num_processes"] == 2
    assert list(run.predictions("validation").idx) == list(range(len(ROWS)))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_two_processes_train_every_seed(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = ["--method", "lora", "--model", tiny_bert, *data_flags, "--seeds", "1", "2"]
    done = run_command("train", *flags, "--output_dir", str(out), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("seed 2 (2 of 2)") == 1
    assert load_run(out).metrics["validation"]["num_seeds"] == 2
    assert load_run(out / "seed_2").record["num_processes"] == 2


def test_two_processes_evaluate_each_example_once(tiny_bert: str, tmp_path: Path) -> None:
    flags = ["--method", "lora", "--model", tiny_bert, "--num_train_epochs", "1"]
    train = write_csv(tmp_path / "train.csv", HALVES * 5, HEADER)
    validation = write_csv(tmp_path / "validation.csv", ROWS, HEADER)
    flags += ["--train_file", str(train), "--validation_file", str(validation)]
    # 6 examples in batches of 4 and 2, or of 2 x 4 with repeated examples.
    flags += ["--selection_fraction", "0.15", "--eval_on_start", "--eval_strategy", "epoch"]
    flags += ["--per_device_eval_batch_size", "4", "--threshold", "auto"]
    evaluations = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        done = run_command("train", *flags, "--output_dir", str(out), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        assert run.record["selection"]["num_examples"] == 6
        evaluations.append(next(r for r in run.record["log_history"] if "eval_loss" in r))
    for name in ("eval_loss", "eval_accuracy", "eval_f1", "eval_roc_auc"):
        assert evaluations[0][name] == pytest.approx(evaluations[1][name], abs=1e-5), name


RECORD_EXAMPLES = """
import json, sys
import torch.distributed as dist
import peft_mrpc.train as train
from peft_mrpc.cli.app import run_cli
from peft_mrpc.training.trainer import ClassificationTrainer

rows = {}
step = ClassificationTrainer.training_step

def watch(self, model, inputs, *args):
    texts = [json.dumps(ids[ids != 0].tolist()) for ids in inputs["input_ids"]]
    rows.setdefault(int(self.state.epoch), []).extend(texts)
    return step(self, model, inputs, *args)

ClassificationTrainer.training_step = watch
assert run_cli(train.main, sys.argv[2:]) == 0
everyone = [None] * dist.get_world_size()
dist.all_gather_object(everyone, rows)
if dist.get_rank() == 0:
    open(sys.argv[1], "w").write(json.dumps(everyone))
dist.destroy_process_group()
"""


def test_two_processes_share_the_examples_of_every_epoch(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    # Dropout draws by the shape of the batch, which is another in each process.
    flags = ["--model", tiny_bert, *data_flags, "--method", "full", "--dropout", "0.1"]
    flags += ["--bf16", "false", "--swap_sentences", "false", "--num_train_epochs", "3"]
    flags += ["--per_device_train_batch_size", "3", "--output_dir", str(tmp_path / "run")]
    done = run_script(RECORD_EXAMPLES, tmp_path, str(tmp_path / "rows.json"), *flags, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = json.loads((tmp_path / "rows.json").read_text())
    for epoch in ("0", "1", "2"):
        first, second = (rank[epoch] for rank in ranks)
        assert len(first) == len(second) == 9 and len({*first, *second}) == 9
        assert sorted([*first, *second]) == sorted(2 * [*{*first, *second}])


@pytest.mark.parametrize("batches", [1, 2])
def test_two_processes_take_the_sam_steps_of_one(
    batches: int, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    options = {**SAM_STEPS, "max_steps": 2, "pooling": "cls", "seed": 7}
    options |= {"gradient_accumulation_steps": batches}
    words = ["--model", tiny_bert, *data_flags]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    one, two = tmp_path / "one", tmp_path / "two"
    main([*words, "--per_device_train_batch_size", "4", "--output_dir", str(one)])
    words += ["--per_device_train_batch_size", "2", "--output_dir", str(two)]
    done = run_command("train", *words, processes=2)
    assert done.returncode == 0, done.stderr
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=2e-5), name
    assert load_run(two).record["config"]["sam_rho"] == RHO


def test_two_processes_take_the_step_of_one_with_all_losses(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    options = {**LOSS_STEP, "pooling": "native"}
    words = ["--model", tiny_bert, *data_flags]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    probabilities = []
    for processes, size in ((1, "8"), (2, "4")):
        out = tmp_path / str(processes)
        flags = [*words, "--per_device_train_batch_size", size, "--output_dir", str(out)]
        done = run_command("train", *flags, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        probabilities.append(load_run(out).predictions("validation").probabilities)
    assert np.abs(np.subtract(*probabilities)).max() < 1e-5


RECORD_UNFREEZING = """
import json, sys
import torch.distributed as dist
import peft_mrpc.training.run as run
from peft_mrpc import train
from peft_mrpc.cli.app import run_cli
from training_recorders import UnfreezingRecorder

build = run.build_trainer

def build_watched(*args, **kwargs):
    trainer, cut = build(*args, **kwargs)
    recorder = UnfreezingRecorder(trainer.model)
    trainer.add_callback(recorder)
    watched.append((trainer, recorder))
    return trainer, cut

watched = []
run.build_trainer = build_watched
assert run_cli(train.main, sys.argv[2:]) == 0
((trainer, recorder),) = watched
kind = type(trainer.model_wrapped).__name__
weights = [p.tolist() for p in trainer.model.parameters()]
everyone = [None] * dist.get_world_size()
dist.all_gather_object(everyone, (kind, recorder.changed, recorder.remembered, weights))
if dist.get_rank() == 0:
    is_equal = all(one == everyone[0] for one in everyone)
    record = {"ranks": len(everyone), "equal": is_equal, "kind": kind}
    record |= {"changed": recorder.changed, "remembered": recorder.remembered}
    open(sys.argv[1], "w").write(json.dumps(record))
dist.destroy_process_group()
"""


def test_two_processes_unfreeze_at_the_same_step(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    flags = ["--model", tiny_bert, *data_flags, *GRADUAL, "--pooling", "native"]
    flags += ["--per_device_train_batch_size", "3", "--warmup_steps", "0"]
    flags += ["--output_dir", str(tmp_path / "run")]
    done = run_script(
        RECORD_UNFREEZING, tmp_path, str(tmp_path / "record.json"), *flags, processes=2
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "record.json").read_text()) == {
        "ranks": 2,
        "equal": True,
        "kind": "DistributedDataParallel",
        "changed": BY_TURNS,
        "remembered": BY_TURNS,
    }
    assert done.stderr.count("the last 2 layers unfrozen") == 1
    assert load_run(tmp_path / "run").record["num_processes"] == 2

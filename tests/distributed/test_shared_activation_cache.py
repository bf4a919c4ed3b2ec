"""Cached activations in several processes."""

from pathlib import Path

import pytest
from conftest import ROWS, WORDS, run_command, run_script, write_csv
from training_recorders import largest_difference

from peft_mrpc.runs.run import load_run
from peft_mrpc.train import main

pytestmark = pytest.mark.distributed

FREEZE = ["--method", "layer_freeze", "--num_unfrozen_layers", "1"]
ON = ["--activation_cache", "on"]


# Each process on a machine of its own.
MACHINE = """
import os, sys
from pathlib import Path
machine = Path(sys.argv[1]) / os.environ["RANK"]
machine.mkdir()
os.chdir(machine)
os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
from peft_mrpc.cli.app import run_cli
from peft_mrpc.train import main
sys.exit(run_cli(main, sys.argv[2:]))
"""


def test_processes_of_one_host_or_of_several_train_as_one_process(
    tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    rows = [
        (f"the {one}", f"a {other} {one}", ROWS[len(one + other) % 2][2])
        for one in WORDS[:8]
        for other in WORDS[:5]
    ]
    train = write_csv(tmp_path / "train.csv", rows, ("sentence1", "sentence2", "label"))
    flags = ["--model", tiny_bert, *data_flags, *FREEZE, "--train_file", str(train), *ON]
    flags += ["--logging_steps", "1", "--dropout", "0", "--num_train_epochs", "2"]
    flags += ["--swap_sentences", "false", "--train_sampling_strategy", "random"]
    flags += ["--bf16", "false", "--output_dir"]
    main([*flags, str(tmp_path / "alone"), "--per_device_train_batch_size", "8"])
    alone = load_run(tmp_path / "alone")
    batch = ["--per_device_train_batch_size", "4"]
    done = run_command("train", *flags, str(tmp_path / "host"), *batch, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert largest_difference(alone, load_run(tmp_path / "host")) < 2e-4
    done = run_script(MACHINE, tmp_path, str(tmp_path), *flags, "run", *batch, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert largest_difference(alone, load_run(tmp_path / "0" / "run")) < 2e-4

"""Publish with the real client on a local Hub, and load from there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROWS, run_command
from hub_server import HubServer

from peft_mrpc.push import main
from peft_mrpc.runs.run import load_run

BASE = "tiny-org/tiny-bert"


@pytest.fixture(scope="module")
def hub() -> HubServer:
    with HubServer(token="hf_test") as server:
        yield server


# The client reads its environment when it is imported, but the token at each call.
COMMANDS = """
import contextlib, importlib, io, json, os, sys
from peft_mrpc.cli.app import run_cli
results = []
for token, (command, *argv) in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    main = importlib.import_module(f"peft_mrpc.{command}").main
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(error):
        results.append([run_cli(main, argv), error.getvalue()])
print(json.dumps(results))
"""


PIPELINE = """
import json, sys
sys.modules["peft_mrpc"] = None  # importing it would fail
from transformers import pipeline
classifier = pipeline("text-classification", sys.argv[1], trust_remote_code=True, top_k=None)
print(json.dumps(classifier({"text": sys.argv[2], "text_pair": sys.argv[3]})))
"""


def run_commands(
    hub: HubServer, folder: Path, commands: list[tuple[str, list[str]]]
) -> list[tuple[int, str]]:
    """Run commands, each with its token, in one new process; their exit codes and messages."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env={**os.environ, **hub.environment(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return [(code, error) for code, error in results]


def published_text(files: dict[str, bytes]) -> str:
    """The text of all files."""
    return "".join(content.decode("utf-8", errors="ignore") for content in files.values())


def test_a_published_model_is_loaded_in_a_new_process(
    hub: HubServer, trained_run: Path, pair_files: dict[str, str], tmp_path: Path
) -> None:
    env = hub.environment(tmp_path / "home")
    done = run_command("push", str(trained_run), "--repo_id", "owner/freeze", "--private", env=env)
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["owner/freeze"]
    assert repository.private
    assert {"model.safetensors", "tokenizer.json", "metrics.json", "run.json", "README.md"} <= set(
        repository.files
    )
    text = published_text(repository.files)
    assert str(trained_run.parent.parent) not in text and "/tmp" not in text
    card = repository.files["README.md"].decode()
    assert card.startswith("---\n") and "library_name: transformers" in card
    assert '"owner/freeze", trust_remote_code=True)' in card
    output = tmp_path / "out.jsonl"
    done = run_command(
        *("predict", "owner/freeze", "--input", pair_files["unlabelled"], "--output", str(output)),
        env=hub.environment(tmp_path / "elsewhere"),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    saved = load_run(trained_run).predictions("validation").probabilities
    assert len(rows) == len(ROWS)
    for row, expected in zip(rows, saved, strict=True):
        assert row["probability_equivalent"] == pytest.approx(expected[1], abs=1e-5)


def test_publishes_an_adapter_at_the_end_of_training(
    hub: HubServer,
    tiny_bert: str,
    data_flags: list[str],
    pair_files: dict[str, str],
    tmp_path: Path,
) -> None:
    base = {p.name: p.read_bytes() for p in Path(tiny_bert).iterdir()}
    hub.create(BASE).commit("base", base, lfs=["model.safetensors"])
    env = hub.environment(tmp_path / "home")
    done = run_command(
        *("train", "--method", "prompt_tuning", "--num_virtual_tokens", "4", *data_flags),
        *("--model", tiny_bert, "--base_model_id", BASE, "--num_train_epochs", "1"),
        *("--output_dir", str(tmp_path / "run")),
        *("--push_to_hub", "--hub_model_id", "owner/prompt"),
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert len(hub.repositories["owner/prompt"].commits) == 2  # the Hub's first commit, and ours
    files = hub.repositories["owner/prompt"].files
    assert json.loads(files["config.json"])["base_model_name_or_path"] == BASE
    assert json.loads(files["peft_mrpc.json"])["model"] == BASE
    text = published_text(files)
    assert "/tmp" not in text and "hf_test" not in text
    # In another home: no local base model, everything is downloaded.
    output = tmp_path / "out.jsonl"
    clean = hub.environment(tmp_path / "elsewhere")
    done = run_command(
        *("predict", "owner/prompt", "--input", pair_files["unlabelled"], "--output", str(output)),
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    saved = load_run(tmp_path / "run").predictions("validation").probabilities
    for row, expected in zip(rows, saved, strict=True):
        assert row["probability_equivalent"] == pytest.approx(expected[1], abs=1e-5)
    # Without this package.
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, "owner/prompt", *ROWS[0][:2]],
        env={**os.environ, **hub.environment(tmp_path / "plain")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = {label["label"]: label["score"] for label in json.loads(done.stdout)}
    assert labels["equivalent"] == pytest.approx(saved[0][1], abs=1e-5)


def test_pushing_a_run_again_changes_nothing(
    hub: HubServer, trained_run: Path, tmp_path: Path
) -> None:
    command = ["push", str(trained_run), "--repo_id", "owner/twice"]
    for code, error in run_commands(hub, tmp_path, [("hf_test", command), ("hf_test", command)]):
        assert code == 0, error
    assert len(hub.repositories["owner/twice"].commits) == 2
    assert not hub.repositories["owner/twice"].private


def test_dry_run_lists_the_files_and_uploads_nothing(
    hub: HubServer, trained_run: Path, tmp_path: Path
) -> None:
    num_requests = len(hub.requests)
    env = hub.environment(tmp_path)
    done = run_command("push", str(trained_run), "--repo_id", "owner/dry", "--dry_run", env=env)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and "nothing was uploaded" in done.stdout
    assert len(hub.requests) == num_requests and "owner/dry" not in hub.repositories


def test_reports_an_impossible_push_in_one_line(
    hub: HubServer, trained_run: Path, tiny_bert: str, data_flags: list[str], tmp_path: Path
) -> None:
    push = ["push", str(trained_run), "--repo_id", "owner/x"]
    train = ["train", *data_flags, "--output_dir", str(tmp_path / "run"), "--push_to_hub"]
    train += ["--hub_model_id", "owner/x", "--model", tiny_bert, "--method", "lora"]
    # Before training: a rejected token, and a base model that others cannot load.
    cases = [("", push), ("hf_wrong", push), ("hf_wrong", train), ("hf_test", train)]
    expected = ["got no Hub token", "rejected the token", "rejected the token", "--base_model_id"]
    results = run_commands(hub, tmp_path, cases)
    for (code, error), message in zip(results, expected, strict=True):
        assert code == 2, error
        (line,) = [line for line in error.splitlines() if line.startswith("peft-mrpc:")]
        assert message in line and "hf_wrong" not in error
    assert "owner/x" not in hub.repositories and not (tmp_path / "run").exists()


def test_rejects_invalid_names(
    trained_run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    run = str(trained_run)
    assert "--repo_id: got none; expected owner/name." in fails(main, run)
    for name in ("nameless", "two/many/parts", "owner/na me", "--/x"):
        message = fails(main, run, f"--repo_id={name}", "--dry_run")
        assert f"--repo_id: got {name!r}; expected owner/name." in message
    assert "is not a directory" in fails(main, str(tmp_path / "gone"), "--repo_id", "owner/x")

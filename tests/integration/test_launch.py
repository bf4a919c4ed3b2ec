"""The shipped launch scripts and configurations, and the commands that the README shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONFIGS

from peft_mrpc.serialization import load_yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_script_has_its_configuration_and_the_other_way_round() -> None:
    assert {path.stem for path in SCRIPTS} == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(yaml_file=str(path))
    assert config.num_processes == load_yaml(path.read_text())["num_processes"]
    assert config.use_cpu == ("cpu" in path.stem)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_executable_and_well_formed(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", ["cpu", pytest.param("multi_cpu", marks=pytest.mark.distributed)])
def test_cpu_scripts_run_a_command(name: str, tiny_bert: str, data_flags: list[str]) -> None:
    folder = Path(sys.executable).parent
    done = subprocess.run(
        [ROOT / "launch" / f"{name}.sh", "train", "--model", tiny_bert, *data_flags, "--dry_run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run: nothing was trained") == 1


def readme_commands() -> list[list[str]]:
    """Every peft-mrpc and accelerate command of the README's shell blocks: verb and flags."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["accelerate", "launch"]:
                module = words.index("-m")
                commands.append(
                    [words[module + 1].removeprefix("peft_mrpc."), *words[module + 2 :]]
                )
            elif words[:1] == ["peft-mrpc"] or (words and words[0].startswith("launch/")):
                commands.append(words[1:])
    return commands


def test_the_readme_shows_every_strategy() -> None:
    methods = {
        words[words.index("--method") + 1] for words in readme_commands() if "--method" in words
    }
    assert "prompt_tuning" in methods
    assert {"train", "hard_prompt", "compare", "predict", "push"} <= {
        words[0] for words in readme_commands()
    }


def test_the_readme_names_no_path_of_one_machine() -> None:
    assert re.findall(r"(?<![\w.~*])/(?:work|root|home|tmp|opt|usr)\b", README) == []

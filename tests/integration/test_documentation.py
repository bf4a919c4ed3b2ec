"""The pages of the documentation: their commands parse, and their links have targets."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from peft_mrpc import config
from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.cli.train_arguments import parse_command_with_job

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
# Commands that accept the options of a training, and their own configs.
TRAINING_COMMANDS: dict[str, tuple[type, ...]] = {
    "train": (),
    "tune": (config.TuneConfig,),
    "doctor": (config.DoctorConfig,),
}
OTHER_COMMANDS: dict[str, tuple[type, ...]] = {
    "hard_prompt": (config.PromptConfig, config.DataConfig),
    "compare": (config.CompareConfig,),
    "predict": (config.PredictConfig,),
    "push": (config.PushConfig,),
    "quickstart": (config.QuickstartConfig,),
}
WITH_RUNS = ("compare", "predict", "push")


def shell_commands(page: Path) -> list[list[str]]:
    """The commands of this package in a page's shell blocks: name and options."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), flags=re.S):
        lines = re.split(r"\n|\s[|>]\s", block.replace("\\\n", " "))
        for words in (shlex.split(line, comments=True) for line in lines):
            if words[:2] == ["accelerate", "launch"] or words[:2] == ["python", "-m"]:
                module, *options = words[words.index("-m") + 1 :]
                commands.append([module.removeprefix("peft_mrpc."), *options])
            elif words and (words[0] == "peft-mrpc" or words[0].startswith("launch/")):
                commands.append(words[1:])
    return commands


def parse(command: str, argv: list[str]) -> Any:
    if command in TRAINING_COMMANDS:
        return parse_command_with_job(argv, command, TRAINING_COMMANDS[command])
    runs = Positional("RUN", "a Run", is_list=True) if command in WITH_RUNS else None
    return parse_command(command, "", argv, OTHER_COMMANDS[command], runs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_parse(page: Path, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("method: lora\n")
    for command, *argv in shell_commands(page):
        if "--config" in argv:
            argv[argv.index("--config") + 1] = str(tmp_path / "file.yaml")
        if {"--help", "--help_all"} & {*argv}:
            with pytest.raises(SystemExit):
                parse(command, argv)
        else:
            parse(command, argv)


def test_the_pages_show_every_command() -> None:
    names = {command for page in PAGES for command, *_ in shell_commands(page)}
    assert names == {*TRAINING_COMMANDS, *OTHER_COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_have_targets(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8"))
    broken = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

"""Parsing of options from the command line and from YAML files."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from peft_mrpc.cli.parser import Positional, parse_command
from peft_mrpc.config import option
from peft_mrpc.errors import UserError


@dataclass(frozen=True)
class Config:
    group: ClassVar[str] = "example"

    rate: float = option(0.1, "a number", common=True)
    name: str = option("x", "a text", common=True)
    seeds: list[int] | None = option(None, "numbers")  # noqa: RUF009
    fast: bool = option(True, "a switch")
    config: str | None = option(None, "a file")


RUN = Positional("RUN", "a directory")
RUNS = Positional("RUN", "directories", is_list=True)


def parse(*argv: str, positional: Positional | None = None) -> tuple[Config, list[str]]:
    (config,), words = parse_command("demo", "A demo.", argv, (Config,), positional)
    return config, words


def faults(*argv: str, positional: Positional | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(*argv, positional=positional)
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--rate 2e-5", Config(rate=2e-5)),
        ("--rate=-1", Config(rate=-1.0)),
        ("--rate 1 --rate 2", Config(rate=2.0)),
        ("--name 3", Config(name="3")),
        ("--name=a=b", Config(name="a=b")),
        ("--seeds 1,2", Config(seeds=[1, 2])),
        ("--seeds 1 2", Config(seeds=[1, 2])),
        ("--seeds 7", Config(seeds=[7])),
        ("--fast false", Config(fast=False)),
        ("--fast", Config(fast=True)),
        ("--no_fast", Config(fast=False)),
        ("--no-fast", Config(fast=False)),
    ],
)
def test_values_have_the_types_of_their_fields(argv: str, expected: Config) -> None:
    assert parse(*argv.split())[0] == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("a b --rate 2", ["a", "b"]),
        ("--rate 2 a b", ["a", "b"]),
        ("--fast a b", ["a", "b"]),
        ("--fast false a", ["a"]),
        ("a --rate=2 - b", ["a", "-", "b"]),
    ],
)
def test_words_without_an_option_may_stand_anywhere(argv: str, words: list[str]) -> None:
    assert parse(*argv.split(), positional=RUNS)[1] == words


def test_all_faults_are_reported_at_once() -> None:
    assert faults("--rat", "1", "--rate", "fast", "--seeds", "1,x") == [
        "--rat: got an unknown option. Did you mean 'rate'?",
        "--rate: got 'fast'; expected a valid number.",
        "--seeds: got '1,x'; expected a valid array.",
    ]
    assert faults("stray") == ["got 'stray'; expected an option (--name value)."]
    assert faults("--name") == ["--name: got 0 words; expected one text, in quotes."]


def test_a_missing_or_second_positional_word_is_a_fault() -> None:
    assert faults(positional=RUN) == ["demo: got no RUN; expected a directory."]
    assert faults("a", "b", positional=RUN) == ["demo: got a b; expected one RUN."]


def test_options_of_a_file_are_below_those_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rate: 2e-5\nname: no\nseeds: [1, 2]\nfast: no\n")
    config = Config(2e-5, "no", [1, 2], False, str(path))
    assert parse("--config", str(path))[0] == config
    assert parse("--config", str(path), "--rate", "1")[0].rate == 1.0
    assert parse("--rate", "1", f"--config={path}")[0].rate == 1.0


def test_a_null_line_of_a_file_leaves_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rate: null\n")
    assert parse("--config", str(path))[0].rate == 0.1


def test_faults_of_a_file_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rat: 1\nrate: fast\nname: [a, b]\nfst: null\nconfig: other.yaml\n")
    assert faults("--config", str(path), "--nam", "x") == [
        f"{path}: config: a file of options cannot name another one; remove it.",
        f"{path}: rat: got an unknown option. Did you mean 'rate'?",
        f"{path}: rate: got 'fast'; expected a valid number.",
        f"{path}: name: got ['a', 'b']; expected a valid string.",
        f"{path}: fst: got an unknown option. Did you mean 'fast'?",
        "--nam: got an unknown option. Did you mean 'name'?",
    ]
    assert "expected a readable YAML file" in faults("--config", "no/such.yaml")[0]


def test_help_shows_common_options_and_help_all_shows_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help", positional=RUNS)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: peft-mrpc demo RUN ... [--option value ...]\n\nA demo.\n")
    assert "--rate" in text and "(default: 0.1)" in text and "--seeds" not in text
    with pytest.raises(SystemExit):
        parse("--help_all")
    assert "--seeds" in capsys.readouterr().out

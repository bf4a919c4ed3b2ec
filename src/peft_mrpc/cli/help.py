"""The text of `--help`: one screen with the options people use, and `--help_all` with the rest."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

WIDTH, COLUMN = 100, 32


@dataclass(frozen=True)
class HelpOption:
    """One option in the help."""

    name: str
    help: str
    default: Any = None
    is_common: bool = True

    def format(self) -> str:
        """The option on one line, or on more if its help is long."""
        text = f"{self.help}{self._default_text()}".strip()
        begin = f"  --{self.name}"
        if len(begin) >= COLUMN:
            begin = f"{begin}\n{' ' * COLUMN}"
        indent = " " * COLUMN
        wrapped = textwrap.fill(
            text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        return (begin.ljust(COLUMN) + wrapped[COLUMN:]).rstrip()

    def one_line(self) -> "HelpOption":
        """This option with the first sentence of its help, cut to one line."""
        sentence = self.help.split(". ")[0].removesuffix(".")
        room = WIDTH - COLUMN - len(self._default_text())
        return replace(self, help=textwrap.shorten(sentence, max(room, 20), placeholder="..."))

    def _default_text(self) -> str:
        is_plain = isinstance(self.default, bool | int | float | str | list) and self.default != ""
        if self.default is False or not is_plain or "default:" in self.help:
            return ""
        return f" (default: {self.default})"


@dataclass(frozen=True)
class HelpGroup:
    """Options under one heading."""

    title: str
    options: Sequence[HelpOption]

    @classmethod
    def of_config(cls, kind: Any, defaults: Mapping[str, Any] | None = None) -> "HelpGroup":
        """The options of a config dataclass.

        Args:
            kind: The dataclass.
            defaults: Defaults that replace those of the dataclass.
        """
        options = []
        for field in dataclasses.fields(kind):
            default = (defaults or {}).get(field.name, field.default)
            text, common = field.metadata["help"], field.metadata["common"]
            options.append(HelpOption(field.name, text, default, common))
        return cls(kind.group, options)


def format_help(
    usage: str, description: str, groups: Sequence[HelpGroup], is_short: bool, epilog: str = ""
) -> str:
    """The help of a command.

    Args:
        usage: How the command is called.
        description: What it does.
        groups: Its options.
        is_short: Whether to leave out the options that are not common.
        epilog: The last lines.
    """
    parts = [f"usage: {usage}\n\n{description}"]
    for group in groups:
        options = [option for option in group.options if option.is_common or not is_short]
        if options:
            parts.append("\n".join([f"{group.title}:", *(option.format() for option in options)]))
    is_cut = is_short and any(not option.is_common for group in groups for option in group.options)
    lines = [epilog] if epilog else []
    if is_cut:
        lines.append("`--help_all` shows all options.")
    if lines:
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"

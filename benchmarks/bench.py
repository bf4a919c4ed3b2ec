"""What the benchmarks share: options, MRPC, the result file, the page, memory.

A result is a row `{name, ours, peer, ratio, goal, unit}`: ratio is how many times as fast (or as
small) ours is, goal the ratio to reach; both are null where nothing is asked. A row of accuracies
has `ours` and `goal` alone.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from matplotlib.figure import Figure

from peft_mrpc.cli.app import EXIT_USER_ERROR, with_dashes
from peft_mrpc.config import DataConfig
from peft_mrpc.data.examples import DataSplits, Example
from peft_mrpc.data.loading import load_data
from peft_mrpc.environment import describe_environment
from peft_mrpc.errors import UserError
from peft_mrpc.evaluation.plot_style import save_figure

HERE = Path(__file__).parent
BESIDE = HERE.parent.parent / "shared" / "data" / "glue" / "MRPC"
Row = dict[str, Any]


# ---- options ----


def build_parser(description: str | None, has_output: bool = True) -> argparse.ArgumentParser:
    """The options of every benchmark; those of its own are added to it."""
    parser = argparse.ArgumentParser(description=str(description).splitlines()[0])
    parser.add_argument(
        "--dataset",
        default=default_dataset(),
        help="MRPC: as --dataset of peft-mrpc (default: what MRPC_DIR names, else the directory "
        "../shared/data/glue/MRPC beside the checkout, else the Hub's)",
    )
    if has_output:
        parser.add_argument(
            "--output",
            type=Path,
            metavar="FILE.json",
            help="where the results go (default: into the page, JSON and picture beside the "
            "script, which are left alone otherwise)",
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="the same comparisons on fewer rows, within 5 minutes on 2 cores; without "
            "--output nothing is written",
        )
    return parser


def positive(text: str) -> int:
    """A whole number of an option, 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number above 0")
    return int(text)


def count(text: str) -> int:
    """A whole number of an option, 0 or more."""
    return 0 if text == "0" else positive(text)


def default_dataset() -> str:
    """MRPC where it lies on this machine, or else its name on the Hub."""
    beside = str(BESIDE) if BESIDE.is_dir() else DataConfig.dataset
    return os.environ.get("MRPC_DIR") or beside


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; the user's fault is one line, and exit code 2."""
    # Peers say much about what they load, and in their own words.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.set_verbosity_error()
    try:
        main()
    except UserError as error:
        sys.stderr.writelines(
            f"{Path(sys.argv[0]).name}: {with_dashes(line)}\n" for line in error.lines()
        )
        sys.exit(EXIT_USER_ERROR)


# ---- results ----


def speed_row(name: str, ours: float, peer: float, goal: float | None, **more: Any) -> Row:
    """Two speeds, in pairs a second if nothing else is said."""
    row = {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "goal": goal}
    return {**row, "unit": "pairs/s", **more}


@dataclass
class Report:
    """Where the results of a benchmark go.

    Attributes:
        name: Of the script, its page, its JSON and its picture.
        output: The result file that was asked for, if one was.
        quick: Whether these are but a few rows.
        packages: Peers that are needed; their versions are recorded too.
    """

    name: str
    output: Path | None
    quick: bool
    packages: Sequence[str] = ()
    _has_said_where: bool = False

    def __post_init__(self) -> None:
        for package in self.packages:
            if not find_spec(package.replace("-", "_")):
                raise UserError(
                    f"{self.name}.py: got no {package}, which it compares with; "
                    "pip install -r benchmarks/requirements.txt"
                )
        if self.output is None:
            return
        if self.output.suffix != ".json" or self.output.is_dir():
            raise UserError(f"--output: got {str(self.output)!r}; expected a file named *.json.")
        if not self.output.absolute().parent.is_dir():
            raise UserError(
                f"--output: got {str(self.output)!r}, whose directory does not exist; make it."
            )
        self.read()  # to say now what is no result of ours and would be lost

    def _say_where(self) -> None:
        """Print what was measured on, and with; once."""
        if self._has_said_where:
            return
        self._has_said_where = True
        found = describe_measurement(self.packages)
        machine, versions = found["machine"], found["versions"]
        memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
        cores = f"{machine['cpu_count']} cores, {machine['torch_threads']} threads, {memory}"
        print(f"{machine['cpu']}, {cores}; {', '.join(machine['gpus']) or 'no GPU'}", flush=True)
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)

    @property
    def path(self) -> Path | None:
        """The result file."""
        return self.output or (None if self.quick else HERE / f"{self.name}.json")

    def read(self) -> dict[str, Any]:
        """What was measured before; nothing where there is none, or this is the quick way.

        Raises:
            UserError: If the file holds something else.
        """
        if self.path is None or not self.path.is_file():
            return {}
        with contextlib.suppress(ValueError, AttributeError):
            found: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
            if found.get("benchmark") == self.name:
                return {} if self.quick else found
        raise UserError(
            f"--output: got {str(self.path)!r}, which holds something other than results of "
            f"{self.name}.py; name another file."
        )

    def write(self, results: Sequence[Row], **more: Any) -> None:
        """Write the result file as it stands; what else was found goes beside the results."""
        if self.path is None:
            return
        record = {"benchmark": self.name, **describe_measurement(self.packages)}
        record |= {"quick": self.quick, "results": list(results), **more}
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def show(self, text: str, mark: str) -> None:
        """Print a table, and put it into the page where this is what the page tells of."""
        self._say_where()
        print(text, flush=True)
        if not (self.output or self.quick):
            put_table(HERE / f"{self.name}.md", text, mark)

    def draw(self, build: Callable[[], Figure]) -> None:
        """Draw the picture of the page."""
        if not (self.output or self.quick):
            save_figure(build(), HERE / f"{self.name}.png")


def build_report(name: str, options: argparse.Namespace, *packages: str) -> Report:
    """The report that the options ask for."""
    return Report(name, options.output, options.quick, packages)


def describe_measurement(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Command, versions and machine."""
    found = describe_environment()
    versions = found["versions"] | {name: metadata.version(name) for name in packages}
    script, *words = sys.argv
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        # A result that is published names no place of this machine.
        "command": shlex.join(
            ["python", f"benchmarks/{Path(script).name}", *map(placeless, words)]
        ),
        "versions": versions,
        "machine": {**found["hardware"], "memory_bytes": memory},
    }


# ---- pages ----


def placeless(word: str) -> str:
    """An argument of a command, of a path from the root on the last name alone."""
    return Path(word).name if Path(word).is_absolute() else word


def put_table(page: Path, text: str, mark: str) -> None:
    """Put a table into a page, between its marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"{page.name} has no place for {mark}"
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def goal_table(rows: Sequence[Row]) -> str:
    """Every comparison with its goal, in Markdown."""
    lines = []
    for row in rows:
        goal = "-" if row["goal"] is None else f"{row['goal']:g}"
        figures = [quantity(row["ours"], row["unit"]), quantity(row["peer"], row["unit"])]
        lines.append([row["name"], *figures, f"{row['ratio']:.2f}", goal])
    return markdown(["comparison", "ours", "peer", "ratio", "goal"], lines)


def quantity(value: float, unit: str) -> str:
    """A figure with its unit."""
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.{1 if value >= 10 else 2}f} {unit}"


def plot_comparisons(rows: Sequence[Row], label: str) -> Figure:
    """Bars of ours and of the peer, and a mark where ours reaches its goal."""
    figure = Figure(figsize=(7, 0.8 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for offset, key, color in ((-0.2, "ours", "#0072B2"), (0.2, "peer", "#999999")):
            axes.barh(place + offset, row[key], 0.38, color=color, label=key if not place else None)
            axes.text(row[key], place + offset, f" {row[key]:.3g}", va="center")
        if row["goal"] is not None:
            goal = row["goal"] * row["peer"]
            axes.plot([goal, goal], [place - 0.4, place], color="#D55E00", linewidth=2)
    axes.plot([], [], color="#D55E00", linewidth=2, label="goal of ours")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


# ---- data ----


def write_pairs(pairs: Sequence[Example], path: Path) -> None:
    """Write pairs as a file of GLUE's MRPC."""
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    lines += [f"{p.label}\t{p.idx}\t{p.idx}\t{p.sentence1}\t{p.sentence2}" for p in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_both(dataset: str) -> DataSplits:
    """Pairs of which some train and others are scored.

    Raises:
        UserError: If either are missing.
    """
    data = load_data(DataConfig(dataset=dataset))
    if missing := {"train", "validation"} - data.splits.keys():
        raise UserError(f"--dataset: {data.name} has no {missing.pop()} split; expected both.")
    return data


# ---- memory ----


class PeakMemory:
    """The most memory that a process has while a block runs, in bytes.

    Attributes:
        before: At the beginning.
        peak: The most since.
    """

    def __init__(self, pid: int | str = "self", kind: str = "VmRSS") -> None:
        """Name the process, and which of Linux's figures to watch.

        VmRSS counts files that are mapped too, which the system takes back when it needs room;
        RssAnon does not.
        """
        self.pid, self.kind = pid, kind

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = resident_bytes(self.pid, self.kind)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak = max(self.peak, resident_bytes(self.pid, self.kind))

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def added(self) -> int:
        """What came to what was there."""
        return self.peak - self.before


def resident_bytes(pid: int | str = "self", kind: str = "VmRSS") -> int:
    """Memory of a process now; 0 once it has ended, and where there is no /proc to ask."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    return 0

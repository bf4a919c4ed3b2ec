"""Shared code of the benchmarks: options, MRPC, the result file, the page, memory.

A result is a row `{name, ours, peer, ratio, goal, unit}`. `ratio` is the speedup over the peer, or
how many times as small a size is; `goal` is the ratio to reach, null without a goal. A row of
accuracies has `ours` and `goal` only.
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
SHARED_MRPC = HERE.parent.parent / "shared" / "data" / "glue" / "MRPC"
Row = dict[str, Any]


# ---- options ----


def build_parser(description: str | None, has_output: bool = True) -> argparse.ArgumentParser:
    """Build a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=str(description).splitlines()[0])
    parser.add_argument(
        "--dataset",
        default=default_dataset(),
        help="MRPC, as --dataset of peft-mrpc (default: $MRPC_DIR, or the directory "
        "../shared/data/glue/MRPC next to the repository, or the Hub)",
    )
    if has_output:
        parser.add_argument(
            "--output",
            type=Path,
            metavar="FILE.json",
            help="result file (default: the JSON file, the page and the plot next to the script; "
            "with this option they do not change)",
        )
        parser.add_argument(
            "--quick",
            action="store_true",
            help="the same comparisons on fewer examples, in at most 5 minutes on 2 cores; without "
            "--output nothing is written",
        )
    return parser


def positive(text: str) -> int:
    """Parse an integer above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected an integer above 0")
    return int(text)


def non_negative(text: str) -> int:
    """Parse an integer of 0 or more."""
    return 0 if text == "0" else positive(text)


def default_dataset() -> str:
    """The directory of MRPC on this machine, or its name on the Hub."""
    shared = str(SHARED_MRPC) if SHARED_MRPC.is_dir() else DataConfig.dataset
    return os.environ.get("MRPC_DIR") or shared


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; a user error ends it with its message and exit code 2."""
    # The peers log warnings of transformers that do not concern the comparison.
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


def speed_row(name: str, ours: float, peer: float, goal: float | None, **fields: Any) -> Row:
    """Build a row of two speeds, in pairs per second unless `unit` is given."""
    row = {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "goal": goal}
    return {**row, "unit": "pairs/s", **fields}


@dataclass
class Report:
    """Writes the result file, the tables of the page and the plot of a benchmark.

    Attributes:
        name: Name of the script, its page, its JSON file and its plot.
        output: Value of `--output`.
        quick: Value of `--quick`.
        packages: Required peers; the result file records their versions.
    """

    name: str
    output: Path | None
    quick: bool
    packages: Sequence[str] = ()
    _header_printed: bool = False

    def __post_init__(self) -> None:
        for package in self.packages:
            if not find_spec(package.replace("-", "_")):
                raise UserError(
                    f"{self.name}.py: the peer {package} is not installed; "
                    "pip install -r benchmarks/requirements.txt"
                )
        if self.output is None:
            return
        if self.output.suffix != ".json" or self.output.is_dir():
            raise UserError(f"--output: got {str(self.output)!r}; expected a file named *.json.")
        if not self.output.absolute().parent.is_dir():
            raise UserError(
                f"--output: got {str(self.output)!r}; expected an existing directory. Create it."
            )
        self.read()  # raises before the measurement if the file holds anything else

    @property
    def path(self) -> Path | None:
        """The result file, None if there is none to write."""
        return self.output or (None if self.quick else HERE / f"{self.name}.json")

    def read(self) -> dict[str, Any]:
        """Read earlier results; empty if there are none, or with `--quick`.

        Raises:
            UserError: If the file is not a result file of this benchmark.
        """
        if self.path is None or not self.path.is_file():
            return {}
        with contextlib.suppress(ValueError, AttributeError):
            record: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
            if record.get("benchmark") == self.name:
                return {} if self.quick else record
        raise UserError(
            f"--output: got {str(self.path)!r}; expected a new file or a result file of "
            f"{self.name}.py. Name another file."
        )

    def write(self, results: Sequence[Row], **fields: Any) -> None:
        """Write the result file with the rows and further fields."""
        if self.path is None:
            return
        record = {"benchmark": self.name, **describe_measurement(self.packages)}
        record |= {"quick": self.quick, "results": list(results), **fields}
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def show(self, table: str, mark: str) -> None:
        """Print a table, and put it into the page unless `--output` or `--quick` is set."""
        self._print_header()
        print(table, flush=True)
        if not (self.output or self.quick):
            put_table(HERE / f"{self.name}.md", table, mark)

    def draw(self, build: Callable[[], Figure]) -> None:
        """Write the plot of the page unless `--output` or `--quick` is set."""
        if not (self.output or self.quick):
            save_figure(build(), HERE / f"{self.name}.png")

    def _print_header(self) -> None:
        """Print the hardware and the versions, once."""
        if self._header_printed:
            return
        self._header_printed = True
        measurement = describe_measurement(self.packages)
        machine, versions = measurement["machine"], measurement["versions"]
        memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
        cores = f"{machine['cpu_count']} cores, {machine['torch_threads']} threads, {memory}"
        print(f"{machine['cpu']}, {cores}; {', '.join(machine['gpus']) or 'no GPU'}", flush=True)
        print(", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)


def build_report(name: str, options: argparse.Namespace, *packages: str) -> Report:
    """Build the report from the options."""
    return Report(name, options.output, options.quick, packages)


def describe_measurement(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The command, the versions and the hardware."""
    environment = describe_environment()
    script, *arguments = sys.argv
    # A published result names no directory of this machine.
    names = [Path(arg).name if Path(arg).is_absolute() else arg for arg in arguments]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *names]),
        "versions": environment["versions"] | {name: metadata.version(name) for name in packages},
        "machine": {**environment["hardware"], "memory_bytes": memory},
    }


# ---- pages ----


def put_table(page: Path, table: str, mark: str) -> None:
    """Replace the table between the marks `<!-- mark -->` and `<!-- end of mark -->` of a page."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    _, separator, after = rest.partition(end)
    assert separator, f"{page.name} has no mark {mark!r}"
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{after}", encoding="utf-8")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Build a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def goal_table(rows: Sequence[Row]) -> str:
    """Build the table of the comparisons and their goals."""
    lines = []
    for row in rows:
        goal = "-" if row["goal"] is None else f"{row['goal']:g}"
        values = [format_quantity(row[key], row["unit"]) for key in ("ours", "peer")]
        lines.append([row["name"], *values, f"{row['ratio']:.2f}", goal])
    return markdown(["comparison", "ours", "peer", "ratio", "goal"], lines)


def format_quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e9:.2f} GB"
    return f"{value:.{1 if value >= 10 else 2}f} {unit}"


def plot_comparisons(rows: Sequence[Row], label: str) -> Figure:
    """Plot both values of each comparison as bars, with a line at the goal."""
    figure = Figure(figsize=(7, 0.8 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for height, row in enumerate(rows):
        for offset, key, color in ((-0.2, "ours", "#0072B2"), (0.2, "peer", "#999999")):
            name = "_" if height else {"ours": "peft-mrpc"}.get(key, key)
            axes.barh(height + offset, row[key], 0.38, color=color, label=name)
            axes.text(row[key], height + offset, f" {row[key]:.3g}", va="center")
        if row["goal"] is not None:
            goal = row["goal"] * row["peer"]
            axes.plot([goal, goal], [height - 0.4, height], color="#D55E00", linewidth=2)
    axes.plot([], [], color="#D55E00", linewidth=2, label="goal")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


# ---- data ----


def write_pairs(pairs: Sequence[Example], path: Path) -> None:
    """Write pairs as a file in the format of GLUE MRPC."""
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    lines += [f"{p.label}\t{p.idx}\t{p.idx}\t{p.sentence1}\t{p.sentence2}" for p in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_both(dataset: str) -> DataSplits:
    """Load data with a train and a validation split.

    Raises:
        UserError: If one of them is missing.
    """
    data = load_data(DataConfig(dataset=dataset))
    if missing := {"train", "validation"} - data.splits.keys():
        raise UserError(f"--dataset: {data.name} has no {missing.pop()} split; expected both.")
    return data


# ---- memory ----


class PeakMemory:
    """Context manager that measures the peak memory of a process, in bytes."""

    def __init__(self, pid: int | str = "self", kind: str = "VmRSS") -> None:
        """Select the process and the field of `/proc/PID/status`.

        `VmRSS` includes mapped files, which the system reclaims when it needs memory; `RssAnon`
        does not.
        """
        self.pid, self.kind = pid, kind

    def __enter__(self) -> "PeakMemory":
        self.peak = resident_bytes(self.pid, self.kind)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def _poll(self) -> None:
        while not self._stop.wait(0.05):
            self.peak = max(self.peak, resident_bytes(self.pid, self.kind))

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def resident_bytes(pid: int | str = "self", kind: str = "VmRSS") -> int:
    """Memory of a process, 0 if it has ended or the system has no /proc."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) * 1024
    return 0

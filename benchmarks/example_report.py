"""The example report: five methods, three seeds, two models, on MRPC's dev split.

    python benchmarks/example_report.py --output_dir runs/example

Trains the Runs that are missing (hours on two cores), evaluates SmolLM2 with a prompt, and writes
the report. `--screenshots docs/example` also takes the screenshots of the documentation; this needs
Chromium and Playwright. The screenshot of examples shows the quickstart's report, whose sentences
are free. Runs of `accuracy.py` in the same directory are reused.
"""

import shutil
from pathlib import Path

from accuracy import ROWS, run_all
from bench import build_parser, run

from peft_mrpc import compare_runs

METHODS = ("lora", "full", "layer_freeze", "prompt_tuning")
SEEDS = ("1", "2", "3")
PROMPT = (
    "hard_prompt --model builtin:smollm2 --quantization none --template all_channel "
    "--calibration batch --label_prior train"
).split()
SHOWN_PLOTS = ("confusion_matrices", "costs", "reliability", "roc_curves")
# Width, height and colour scheme of each screenshot.
SCREENS = {
    "first_screen": (1280, 880, "light"),
    "first_screen_dark": (1280, 880, "dark"),
    "phone": (390, 844, "light"),
    "examples": (1280, 880, "light"),
}


def main() -> None:
    parser = build_parser(__doc__, has_output=False)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/example"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--screenshots", type=Path, help="directory of the screenshots")
    parser.add_argument(
        "--quickstart", type=Path, default=Path("runs/quickstart/comparison"), help="its report"
    )
    options = parser.parse_args()
    common = ["--dataset", options.dataset, "--split", "validation"]
    commands = {
        options.output_dir / f"{name}-{seed}": ["train", *ROWS[name], *common, "--seed", seed]
        for seed in SEEDS
        for name in METHODS
    }
    commands[options.output_dir / "hard_prompt"] = [*PROMPT, *common]
    for _ in run_all(commands, options.jobs):
        pass
    report = compare_runs(sorted(commands))
    folder = options.output_dir / "report"
    report.write(folder, overwrite=True)
    print(report.to_text())
    if options.screenshots:
        take_screenshots(folder, options.quickstart, options.screenshots)


def take_screenshots(report: Path, quickstart: Path, folder: Path) -> None:
    """Copy plots, and take screenshots of the page."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    for name in SHOWN_PLOTS:
        shutil.copy(report / "plots" / f"{name}.png", folder)
    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, (width, height, scheme) in SCREENS.items():
            viewport = {"width": width, "height": height}
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            if name == "examples":
                page.goto((quickstart / "report.html").resolve().as_uri() + "#examples")
                page.select_option("#agreement", "split")
            else:
                page.goto((report / "report.html").resolve().as_uri())
            page.wait_for_timeout(200)
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    run(main)

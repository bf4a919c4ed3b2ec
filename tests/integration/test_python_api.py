"""The blocks of docs/python-api.md and the example script run as they are written."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")


def test_every_block_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    assert len(blocks) >= 6
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    names = runpy.run_path(str(script))
    assert names["run"].path.is_dir()
    assert names["classifier"].labels == ["not_equivalent", "equivalent"]
    assert (tmp_path / "report.html").is_file()


def test_every_public_name_is_on_the_page() -> None:
    import peft_mrpc

    missing = [name for name in peft_mrpc.__all__ if name not in PAGE and name != "__version__"]
    assert missing == []


def test_importing_the_package_imports_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "peft", "datasets", "numpy", "pandas")
    script = f"import sys, peft_mrpc; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_library_does_not_print(train_tiny, capsys: pytest.CaptureFixture[str]) -> None:
    train_tiny()
    assert capsys.readouterr().out == ""


def test_options_of_the_command_line_only_are_refused() -> None:
    from peft_mrpc import PromptConfig, TrainConfig, UserError, evaluate_prompt, train_classifier

    with pytest.raises(UserError, match="dry_run: got true; expected false"):
        train_classifier(TrainConfig(dry_run=True))
    with pytest.raises(UserError, match="dry_run: got true; expected false"):
        evaluate_prompt(PromptConfig(dry_run=True))
    with pytest.raises(UserError, match="config: got 'options.yaml'; expected none"):
        train_classifier(TrainConfig(config="options.yaml"))
    with pytest.raises(UserError, match="config: got 'options.yaml'; expected none"):
        evaluate_prompt(PromptConfig(config="options.yaml"))


@pytest.mark.slow
def test_the_example_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "compare_strategies.py"))
    assert (tmp_path / "runs" / "example" / "report.html").is_file()

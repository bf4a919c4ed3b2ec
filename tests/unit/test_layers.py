"""What may be imported by what; import-linter holds the rest (pyproject.toml)."""

import subprocess
import sys


def test_comparing_needs_no_deep_learning_library() -> None:
    heavy = ("torch", "transformers", "peft", "datasets", "evaluate")
    script = f"import sys, peft_mrpc.compare; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

"""A module imports only from lower layers (the verbs may call each other)."""

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "peft_mrpc"
LAYERS = [
    {
        "averages",
        "confidence",
        "dropout",
        "either_order",
        "epochs",
        "environment",
        "errors",
        "figures",
        "heap",
        "json_lines",
        "option_values",
        "pair_model",
        "pairs",
        "progress",
        "run_shape",
        "wording",
        "yaml_text",
    },
    {
        "calibration",
        "columns",
        "config",
        "data",
        "encoded",
        "flags",
        "help_format",
        "metrics",
        "precision",
        "processes",
        "prompts",
        "runs",
        "styles",
        "search_space",
        "sources",
        "staging",
        "template_files",
        "tables",
        "trackers",
        "targets",
        "thresholds",
        "trunk_plan",
        "workers",
    },
    {
        "adapters",
        "cards",
        "checkpoints",
        "continuations",
        "comparison",
        "control_tokens",
        "cost_plots",
        "compatibility",
        "first_token",
        "freezing",
        "kept_trunks",
        "layer_freeze",
        "learning_rates",
        "left_out",
        "length_groups",
        "losses",
        "models",
        "module_names",
        "optimizer_faults",
        "option_faults",
        "partial_scores",
        "plots",
        "prompt_faults",
        "publishing",
        "quantization",
        "resampling",
        "run_plots",
        "scoring",
        "search_plots",
        "selection",
        "sentences",
        "shared_prefix",
        "sharpness",
        "statistics",
        "token_batches",
        "training_attention",
        "trunk",
        "trunk_fill",
        "trunk_name",
        "trunk_rows",
        "trunk_store",
    },
    {
        "cached_trunk",
        "choosing",
        "evidence",
        "explorer",
        "methods",
        "pictures",
        "predictors",
        "prompting",
        "reporting",
        "trainer",
        "verdict",
    },
    {"argument_faults", "demonstrations", "endpoint", "engines", "html_report", "report"},
    {"requests"},
    {"resuming"},
    {"answers", "artifacts", "bars", "plain_artifacts", "reading"},
    {"asking", "prompt_plan", "train_draws"},
    {"building", "joined", "rehearsal", "search", "search_outcome", "seeds"}
    | {"training", "tune_flags"},
    {"cache", "compare", "doctor", "hard_prompt", "predict", "push", "quickstart", "train", "tune"},
    {"__main__"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """Our own modules that a module imports when it runs (not for type checking alone)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if node in typing_only or not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module == "peft_mrpc":
            names |= {alias.name for alias in node.names}
        elif node.module.startswith("peft_mrpc."):
            names.add(node.module.split(".")[1])
    return names & set(LAYER_OF)


def test_comparing_needs_no_deep_learning_library() -> None:
    heavy = ("torch", "transformers", "peft", "datasets", "evaluate")
    script = f"import sys, peft_mrpc.compare; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_module_has_a_layer_and_imports_downwards() -> None:
    modules = {path.stem: path for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(LAYER_OF)
    upwards = [
        (name, other)
        for name, path in modules.items()
        for other in imported(path)
        if LAYER_OF[other] > LAYER_OF[name]
    ]
    assert upwards == []


def test_text_modules_need_no_torch() -> None:
    for name in ("errors", "prompts", "data"):
        assert "import torch" not in (SOURCE / f"{name}.py").read_text()


def test_only_one_module_knows_bitsandbytes_config() -> None:
    users = [p.stem for p in SOURCE.glob("*.py") if "BitsAndBytesConfig" in p.read_text()]
    assert users == ["quantization"]

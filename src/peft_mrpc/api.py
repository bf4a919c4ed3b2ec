"""The Python API. The commands run the same library functions; no function here prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_mrpc.config import DataConfig, PromptConfig, TrainConfig
from peft_mrpc.errors import UserError, raise_faults

if TYPE_CHECKING:
    from peft_mrpc.models.classifier import Classifier
    from peft_mrpc.prompting.classifier import PromptClassifier
    from peft_mrpc.report.build import Report
    from peft_mrpc.runs.run import Run


def train_classifier(
    config: TrainConfig,
    data: "DataConfig | Mapping[str, Any] | None" = None,
    *,
    output_dir: "Path | str | None" = None,
    **options: Any,
) -> "Run":
    """Adapt a pretrained model to sentence-pair classification and write its Run.

    Args:
        config: Model, method and head. Fields that are None take the value of the method's recipe.
        data: A data set (default: MRPC from the Hub), or examples in memory: a mapping from split
            names to lists of tuples `(sentence1, sentence2, label)`, `datasets.Dataset` or pandas
            `DataFrame`.
        output_dir: Directory of the Run; `runs/DATASET-MODEL-METHOD` by default.
        options: Fields of transformers' `TrainingArguments` and options of the method, mixed.
    Returns:
        The Run; with `config.seeds`, the multi-seed Run.
    Raises:
        UserError: With one line for each fault of the arguments or the data.
    """
    from peft_mrpc.runs.run import Run
    from peft_mrpc.training.job import TrainJob, convert_options
    from peft_mrpc.training.run import run_training

    _check_command_options(config)
    job = TrainJob(
        config,
        DataConfig() if data is None else data,
        *convert_options(config.method, options),
        output_dir=None if output_dir is None else Path(output_dir),
    )
    run = run_training(job)
    if not isinstance(run, Run):  # another process of a distributed training than the first
        return None  # type: ignore[return-value]
    return run


def load_classifier(
    run: "Run | Path | str",
    class_names: str | None = None,
    endpoint: str | None = None,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> "Classifier | PromptClassifier":
    """Load the classifier of a Run, of a directory or of a Hub repository.

    Args:
        run: A Run, its directory, the directory of a model or an adapter, or `owner/name` on the
            Hub. Models and adapters may come from other tools.
        class_names: Label names, comma-separated, for a model or an adapter of another tool.
        endpoint: Address of the server, for a hard prompt that was evaluated with a served model.
        trust_remote_code: Whether Python files of the model may be executed.
        allow_pickle: Whether weights may be pickle files (`.bin`), which can execute code.
    Raises:
        UserError: If `run` holds no classifier, or an argument does not apply to it.
    """
    from peft_mrpc.formatting import mask_credentials
    from peft_mrpc.models.artifact import load_fine_tuned, read_info, resolve_artifact
    from peft_mrpc.models.external import rename_labels
    from peft_mrpc.models.sources import Trust
    from peft_mrpc.prompting.artifact import load_prompt
    from peft_mrpc.runs.run import ARTIFACT_FILE

    name = str(getattr(run, "path", run))
    folder = resolve_artifact(name)
    trust = Trust(trust_remote_code, allow_pickle)
    info = read_info(folder, name, trust)
    if class_names is not None:
        if (folder / ARTIFACT_FILE).is_file():
            labels = ", ".join(info["label_names"])
            raise UserError(
                f"class_names: {name} has its own label names ({labels}); expected none."
            )
        info = rename_labels(info, class_names, name)
    if info.get("method") == "hard_prompt":
        return load_prompt(folder, info, endpoint, trust)
    if endpoint is not None:
        address = mask_credentials(endpoint)
        raise UserError(f"endpoint: got {address}, but {name} uses no served model; expected none.")
    return load_fine_tuned(folder, info, trust)


def evaluate_prompt(
    config: PromptConfig, data: "DataConfig | Mapping[str, Any] | None" = None
) -> "Run":
    """Score examples with a prompted causal LM and write a Run.

    Args:
        config: Model, templates, demonstrations, calibration and output directory.
        data: A data set (default: MRPC from the Hub), or examples in memory, as for
            `train_classifier`.
    Returns:
        The Run.
    Raises:
        UserError: With one line for each fault of the options, the templates, the data or the
            prompts.
    """
    from peft_mrpc.prompting.run import run_prompting

    _check_command_options(config)
    # None in other processes of a distributed job than the first.
    return run_prompting(config, DataConfig() if data is None else data)  # type: ignore[return-value]


def compare_runs(runs: "Sequence[Run | Path | str]", **options: Any) -> "Report":
    """Compare Runs on the same examples.

    Args:
        runs: Runs or their directories. Runs that differ in the seed only are aggregated.
        options: Fields of `CompareConfig`: `split`, `aggregate_seeds`, `equivalence_margin`,
            `max_examples`. Its output directory and quality gate apply to the command only.
    Returns:
        A report with `metrics`, `to_markdown()`, `write_html(path)` and `write(output_dir)`.
    Raises:
        UserError: If an option is invalid, a Run is missing or damaged, or was scored on other
            examples.
    """
    from peft_mrpc.config import CompareConfig
    from peft_mrpc.report.build import build_report

    return build_report(runs, CompareConfig(**options))


def _check_command_options(config: TrainConfig | PromptConfig) -> None:
    """Refuse the options that have an effect on the command line only."""
    faults = []
    if config.dry_run:
        faults.append("dry_run: got true; expected false, the command line prints the plan.")
    if config.config is not None:
        faults.append(
            f"config: got {config.config!r}; expected none, the command line reads the file."
        )
    raise_faults(faults)

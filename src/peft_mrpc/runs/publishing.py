"""A Run to the Hub: the adapter or model, its tokenizer, its metrics and its card."""

import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from peft_mrpc.errors import UserError, logger, one_line
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import CARD_FILE, METRICS_FILE, RUN_FILE, Run
from peft_mrpc.serialization import read_json, write_json

# What of a Run's record may be told to the world: results and settings, no path of this machine.
PRIVATE_KEYS = (
    "train_file",
    "validation_file",
    "test_file",
    "logging_dir",
    "endpoint",
    "hub_token",
    "run_name",
)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no repository's name.

    Raises:
        UserError: If it is not `owner/name` in the letters the Hub takes.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"repo_id: got {repo_id!r}; expected owner/name. {one_line(error)}"
        ) from error
    if "/" not in repo_id:
        raise UserError(f"repo_id: got {repo_id!r}; expected owner/name.")


def check_access(repo_id: str) -> None:
    """Ask the Hub, before hours of training, whether it will take the result.

    Raises:
        UserError: If the name is no repository name, there is no token, or the Hub refuses it.
    """
    check_repo_id(repo_id)
    if get_token() is None:
        raise UserError("push: no Hub token found; log in with `hf auth login` or set HF_TOKEN.")
    try:
        HfApi().whoami()
    except Exception as error:  # a refused token or no network: either way nothing can be pushed
        raise UserError(
            f"push: the Hub refused the token or is out of reach: {one_line(error)[:200]}"
        ) from error


def check_base(model: str, base_model_id: str | None) -> None:
    """Refuse to publish an adapter or a prompt whose base model nobody else could load.

    Raises:
        UserError: If the base is a local directory without a Hub id.
    """
    if not base_model_id:
        raise UserError(
            f"push: the base model is the local directory {model!r}, which others cannot load; "
            "give its Hub id with --base_model_id."
        )


def check_publishable(run: Run) -> None:
    """Refuse a Run that would be of no use elsewhere.

    Raises:
        UserError: As `check_base` says; a whole model needs no base.
    """
    if run.artifact.name != "model":
        check_base(run.record["model"], run.record["base_model_id"])


def collect_files(run: Run, repo_id: str, folder: Path) -> None:
    """Lay out in `folder` what the repository will hold, without a path of this machine in it."""
    if count := run.num_pool_examples:
        logger.warning(
            "push: %d labelled training pairs go along: demonstrations are found among them", count
        )
    shutil.copytree(run.artifact, folder, dirs_exist_ok=True)
    # PEFT and transformers write cards and arguments of their own; ours says more and no paths.
    with contextlib.suppress(FileNotFoundError):
        (folder / "training_args.bin").unlink()
    for file in folder.glob("*.json"):
        if file.name in ("peft_mrpc.json", "adapter_config.json"):
            write_json(file, _published_names(read_json(file), run))
    for path in {run.path, run.model_run.path}:
        if (path / "plots").is_dir():  # a Run on unlabelled rows has none
            shutil.copytree(path / "plots", folder / "plots", dirs_exist_ok=True)
    write_json(folder / METRICS_FILE, run.metrics)
    write_json(folder / RUN_FILE, _published_record(run))
    (folder / CARD_FILE).write_text(build_card(run, repo_id), encoding="utf-8")


def _published_names(info: dict[str, Any], run: Run) -> dict[str, Any]:
    base = run.record["base_model_id"]
    named = {"base_model_name_or_path": base, "tokenizer_name_or_path": base}
    if not str(info.get("model", "builtin:")).startswith("builtin:"):
        named["model"] = base
    return {**info, **{key: value for key, value in named.items() if info.get(key)}}


def _published_record(run: Run) -> dict[str, Any]:
    config = {
        # A template is text, whatever in it looks like a path.
        key: value if key == "templates" else _without_path(value)
        for key, value in run.record["config"].items()
        if key not in PRIVATE_KEYS
    }
    model = _without_path(run.record["model"])
    if model != run.record["model"]:
        model = config["model"] = run.record["base_model_id"] or model
    options = _without_path(run.record.get("method_options", {}))
    return {**run.record, "model": model, "config": config, "method_options": options}


def _without_path(value: Any) -> Any:
    """The name alone of what is, or looks like, a file or directory."""
    if isinstance(value, dict):
        return {key: _without_path(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_path(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or Path(value).is_dir()):
        return Path(value).name
    return value


def publish(run: Run, repo_id: str, private: bool) -> str:
    """Create the repository if it is missing and upload in one commit.

    Returns:
        The address of the repository.
    Raises:
        UserError: If the Hub refuses; the Run on disk stays as it is.
    """
    check_publishable(run)
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        collect_files(run, repo_id, Path(folder))
        try:
            # None leaves an organisation's own default in force.
            url = api.create_repo(repo_id, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Upload {run.record['method']} by peft-mrpc",
            )
        except (
            Exception
        ) as error:  # refused, or the connection broke: httpx's errors are no OSError
            raise UserError(
                f"push: {repo_id}: {one_line(error)[:300]} The Run is kept in {run.path}; "
                f"try again: peft-mrpc push {run.path} --repo_id {repo_id}"
            ) from error
    logger.log(logging.INFO, "published: %s", url)
    return str(url)

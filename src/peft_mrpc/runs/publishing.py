"""Publish a Run on the Hub: its adapter or model, tokenizer, metrics and model card."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from peft_mrpc.errors import UserError, one_line
from peft_mrpc.runs.model_card import build_card
from peft_mrpc.runs.run import (
    ARTIFACT_FILE,
    CARD_FILE,
    METRICS_FILE,
    PLOT_FILES,
    RUN_FILE,
    Run,
    read_artifact_record,
)
from peft_mrpc.serialization import read_json, write_json

logger = logging.getLogger(__name__)

# Options that are not published: paths, addresses and tokens.
PRIVATE_KEYS = (
    "train_file",
    "validation_file",
    "test_file",
    "logging_dir",
    "endpoint",
    "hub_token",
    "run_name",
)


def check_repo_id(repo_id: str | None, argument: str = "repo_id") -> None:
    """Check the name of a repository.

    Args:
        repo_id: The name.
        argument: The argument that holds it, for the message.
    Raises:
        UserError: If it is not `owner/name` in the characters that the Hub allows.
    """
    if not repo_id:
        raise UserError(f"{argument}: got none; expected owner/name.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{argument}: got {repo_id!r}; expected owner/name. {one_line(error)}"
        ) from error
    if "/" not in repo_id:
        raise UserError(f"{argument}: got {repo_id!r}; expected owner/name.")


def check_access(repo_id: str, argument: str = "hub_model_id") -> None:
    """Check before a long training that its result can be uploaded. Nothing is created.

    Raises:
        UserError: If the name is invalid, there is no token, the Hub rejects it, or it cannot write
            the repository.
    """
    check_repo_id(repo_id, argument)
    if get_token() is None:
        raise UserError("push: got no Hub token. Log in with `hf auth login` or set HF_TOKEN.")
    api = HfApi()
    try:
        identity = api.whoami()
    except Exception as error:  # a rejected token or no network
        raise UserError(
            f"push: the Hub rejected the token or cannot be reached: {one_line(error)[:200]}"
        ) from error
    if not _may_write(identity, repo_id) or _is_forbidden(api, repo_id):
        raise UserError(
            f"push: got a Hub token that cannot write {repo_id}; expected one with write access. "
            "Create it at https://huggingface.co/settings/tokens."
        )


def _may_write(identity: Mapping[str, Any], repo_id: str) -> bool:
    """Whether a token's role allows to write, as far as the Hub tells."""
    token = (identity.get("auth") or {}).get("accessToken") or {}
    if token.get("role") != "fineGrained":
        return token.get("role") != "read"
    scopes = token.get("fineGrained") or {}
    names = (repo_id, repo_id.partition("/")[0])
    granted = {
        permission
        for scope in scopes.get("scoped") or ()
        if scope.get("entity", {}).get("name") in names
        for permission in scope.get("permissions") or ()
    }
    return "repo.write" in granted | set(scopes.get("global") or ())


def _is_forbidden(api: HfApi, repo_id: str) -> bool:
    """Whether the repository exists and its owner does not let this user write it."""
    try:
        api.auth_check(repo_id, write=True)
    except Exception as error:  # it does not exist, or no connection, which `publish` reports
        return getattr(getattr(error, "response", None), "status_code", None) == 403
    return False


def check_base(model: str, base_model_id: str | None) -> None:
    """Check that others can load the base model of an adapter or a prompt.

    Raises:
        UserError: If it is a local directory without a Hub id.
    """
    if not base_model_id:
        raise UserError(
            f"base_model_id: got none, but the base model is the local directory {model!r}; "
            "expected its Hub id."
        )


def check_publishable(run: Run) -> None:
    """Check that others can load a Run; a whole model needs no base model.

    Raises:
        UserError: If its base model is a local directory without a Hub id.
    """
    if run.artifact.name != "model":
        check_base(run.record["model"], run.record["base_model_id"])


def with_base_model(run: Run, base_model_id: str | None) -> Run:
    """The Run with another Hub id of its base model, if one is given.

    Raises:
        UserError: If the id is invalid.
    """
    if not base_model_id:
        return run
    check_repo_id(base_model_id, "base_model_id")
    return replace(run, record={**run.record, "base_model_id": base_model_id})


def list_files(run: Run, repo_id: str) -> dict[str, int]:
    """The files that `publish` would upload, with their sizes in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect_files(run, repo_id, folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def collect_files(run: Run, repo_id: str, folder: Path) -> None:
    """Write the content of the repository into `folder`, without local paths."""
    for source, name in _recorded_files(run):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    for name in (ARTIFACT_FILE, "adapter_config.json", "config.json"):
        if (folder / name).is_file():
            write_json(folder / name, _published_names(read_json(folder / name), run))
    write_json(folder / METRICS_FILE, run.metrics)
    write_json(folder / RUN_FILE, _published_record(run))
    (folder / CARD_FILE).write_text(build_card(run, repo_id), encoding="utf-8")


def _recorded_files(run: Run) -> Iterator[tuple[Path, str]]:
    """The files that a Run has written, each with its path in the repository.

    Other files in its folders are not uploaded.

    Raises:
        UserError: If one is missing or is a symbolic link.
    """
    folder, artifact = run.model_run.path, run.artifact.name
    names = [ARTIFACT_FILE, *read_artifact_record(run.artifact).get("files", ())]
    paths = {name: f"{artifact}/{name}" for name in names}
    plots = [f"plots/{name}" for name in PLOT_FILES]  # of a Run without labels there are none
    paths |= {name: name for name in plots if (folder / name).is_file()}
    for name, path in paths.items():
        if (folder / path).resolve() != folder.resolve() / path:
            raise UserError(f"{folder / path}: is a symbolic link; expected a file of the Run.")
        yield folder / path, name


def _published_names(info: dict[str, Any], run: Run) -> dict[str, Any]:
    """Replace local paths of the base model by its Hub id."""
    base = run.record["base_model_id"]
    names = {"base_model_name_or_path": base, "tokenizer_name_or_path": base}
    if not str(info.get("model", "builtin:")).startswith("builtin:"):
        names["model"] = base
    return {**info, **{key: value for key, value in names.items() if info.get(key)}}


def _published_record(run: Run) -> dict[str, Any]:
    """The content of `run.json` without private options and local paths."""
    config = {
        # A template is text, even if it looks like a path.
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
    """Replace everything that is or looks like a path by its last component."""
    if isinstance(value, dict):
        return {key: _without_path(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_path(item) for item in value]
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or Path(value).is_dir()):
        return Path(value).name
    return value


def publish(run: Run, repo_id: str, private: bool) -> str:
    """Upload a Run in one commit; the repository is created if it does not exist.

    Args:
        run: The Run.
        repo_id: Name of the repository, `owner/name`.
        private: Whether a new repository is private.
    Returns:
        The URL of the repository.
    Raises:
        UserError: If others could not load the Run, or the Hub rejects it.
    """
    check_publishable(run)
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        collect_files(run, repo_id, Path(folder))
        try:
            # None: the default of the organization applies.
            url = api.create_repo(repo_id, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=f"Upload {run.record['method']} by peft-mrpc",
            )
        except Exception as error:  # rejected, or no connection: httpx's errors are not OSErrors
            raise UserError(
                f"push: {repo_id}: {one_line(error)[:300]} The Run is in {run.path}. Try again: "
                f"peft-mrpc push {run.path} --repo_id {repo_id}"
            ) from error
    logger.info("published: %s", url)
    return str(url)

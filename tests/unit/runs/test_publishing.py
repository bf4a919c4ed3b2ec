"""What is uploaded, and who may."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_runs import SCORES, build_run, change_json
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from peft_mrpc.errors import UserError
from peft_mrpc.runs import publishing
from peft_mrpc.runs.run import Run, load_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A Run whose folders hold more than it has written."""
    run = build_run(tmp_path / "run", SCORES["a"])
    record = {"format_version": 1, "model": "m", "base_model_id": "m", "method": "full"}
    record |= {"label_names": run.label_names, "max_length": 8, "files": ["config.json"]}
    (run.path / "model" / "peft_mrpc.json").write_text(json.dumps(record))
    (run.path / "plots" / "roc_curve.png").write_bytes(b"png")
    for name in ("config.json", ".env", "notes.txt", "training_args.bin"):
        (run.path / "model" / name).write_text("{}")
    (run.path / "plots" / "private.png").write_bytes(b"png")
    (run.path / "model" / "passwd").symlink_to("/etc/hostname")
    return run


def test_only_the_files_that_the_run_records_are_uploaded(run: Run) -> None:
    assert list(publishing.list_files(run, "owner/name")) == [
        *("README.md", "config.json", "metrics.json", "peft_mrpc.json"),
        *("plots/roc_curve.png", "run.json"),
    ]


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_are_not_followed(is_folder: bool, run: Run, tmp_path: Path) -> None:
    linked = run.path / ("model" if is_folder else "model/config.json")
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a symbolic link; expected a file of the Run"):
        publishing.list_files(run, "owner/name")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", ".env"])
def test_a_record_cannot_name_files_elsewhere(name: str, run: Run) -> None:
    change_json(run.path / "model" / "peft_mrpc.json", lambda info: info.update(files=[name]))
    with pytest.raises(UserError, match="expected a file inside of the folder"):
        publishing.list_files(load_run(run.path), "owner/name")


def token(role: str, **scopes: Any) -> dict[str, Any]:
    """The Hub's answer to `whoami`."""
    return {"name": "me", "auth": {"accessToken": {"role": role, "fineGrained": scopes}}}


def scope(name: str, permission: str) -> dict[str, Any]:
    return {"scoped": [{"entity": {"name": name}, "permissions": [permission]}]}


@pytest.mark.parametrize(
    ("identity", "status", "is_allowed"),
    [
        (token("write"), 200, True),
        (token("write"), 404, True),  # a repository to create
        (token("write"), 403, False),  # of another owner
        (token("read"), 200, False),
        (token("fineGrained", **scope("owner", "repo.write")), 404, True),
        (token("fineGrained", **scope("owner/name", "repo.write")), 200, True),
        (token("fineGrained", **{"global": ["repo.write"]}), 200, True),
        (token("fineGrained", **scope("owner", "repo.content.read")), 200, False),
        (token("fineGrained", **scope("other", "repo.write")), 200, False),
        ({"name": "me"}, 200, True),  # a Hub that tells no role
    ],
)
def test_write_access_is_checked_before_a_training(
    identity: dict[str, Any], status: int, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def whoami(self) -> dict[str, Any]:
            return identity

        def auth_check(self, repo_id: str, *, write: bool) -> None:
            assert repo_id == "owner/name" and write
            if status != 200:
                kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
                response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
                raise kind("refused", response=response)

    monkeypatch.setattr(publishing, "HfApi", Api)
    monkeypatch.setattr(publishing, "get_token", lambda: "hf_x")
    if is_allowed:
        publishing.check_access("owner/name")
        return
    with pytest.raises(UserError, match="got a Hub token that cannot write owner/name; expected"):
        publishing.check_access("owner/name")

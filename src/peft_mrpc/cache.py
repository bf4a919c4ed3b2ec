"""List, and clear, what the frozen layers of past trainings gave."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from peft_mrpc import config as cfg
from peft_mrpc.cli.app import run_cli
from peft_mrpc.cli.parser import parse_flags
from peft_mrpc.errors import UserError, one_line
from peft_mrpc.training.activation_cache.disk import (
    KeptTrunk,
    kept_trunks,
    remove_trunk,
    trunks_dir,
)
from peft_mrpc.training.activation_cache.plan import in_bytes, parse_bytes

DESCRIPTION = "List what --trunk_cache keeps on disk; with --clear or --keep, remove it."


@dataclass
class CacheConfig:
    """What is removed."""

    clear: bool = cfg.option(False, "remove all of it")
    keep: str | None = cfg.option(None, "remove what was used longest ago, down to this size: 5GB")


def main(argv: Sequence[str]) -> None:
    (config,), _ = parse_flags("cache", DESCRIPTION, (CacheConfig,), argv)
    limit = 0 if config.clear else None
    if config.keep is not None:
        if config.clear:
            raise UserError("--keep: got --clear as well, which keeps nothing; drop one of them.")
        limit = parse_bytes(config.keep)
        if limit is None:
            raise UserError(f"--keep: got {config.keep!r}; expected a size such as 5GB.")
    if (place := trunks_dir()).exists() and not place.is_dir():
        raise UserError(f"PEFT_MRPC_TRUNKS: got {place}, a file; expected a directory.")
    kept = kept_trunks()
    lines = [_line(trunk) for trunk in kept]
    total = sum(trunk.size for trunk in kept)
    lines.append(f"{in_bytes(total)} in {len(kept)} trunks, {trunks_dir()}")
    if limit is not None:
        freed = 0
        for trunk in reversed(kept):
            if total - freed > limit:
                try:
                    freed += remove_trunk(trunk)
                except OSError as error:
                    raise UserError(
                        f"{trunk.folder}: cannot be removed: {one_line(error)}"
                    ) from error
        lines.append(f"removed {in_bytes(freed)}, {in_bytes(total - freed)} kept")
    sys.stdout.write("\n".join(lines) + "\n")


def _line(trunk: KeptTrunk) -> str:
    about = trunk.about
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(trunk.used))
    what = f"{about.get('model', 'unknown')}, {about.get('depth', '?')} layers"
    return f"{in_bytes(trunk.size):>8}  {used}  {what}, {about.get('kept_in', '?')}"


if __name__ == "__main__":
    sys.exit(run_cli(main))

"""Runs that differ by their seed alone, read as one Run over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peft_mrpc.evaluation.seed_aggregation import combine_metrics, seeds_record
from peft_mrpc.runs.run import Run

# What two Runs of one command may have said differently: nothing that trains.
BESIDE_THE_POINT = frozenset(
    {"seed", "data_seed", "seeds", "run_name", "disable_tqdm", "report_to", "logging_steps"}
    | {"resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_private_repo", "local_rank"}
)


@dataclass(frozen=True)
class JoinedRun(Run):
    """Several Runs as one; its model and its answers are the first one's.

    Attributes:
        members: The Runs, by seed.
    """

    members: tuple[Run, ...] = ()

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Means and deviations over the seeds, by split, as in a Run over seeds."""
        seeds = [run.record["seed"] for run in self.members]
        shared = [s for s in self.members[0].metrics if all(s in r.metrics for r in self.members)]
        return {
            split: combine_metrics([run.metrics[split] for run in self.members], seeds)
            for split in shared
        }

    @property
    def seed_runs(self) -> list[Run]:
        """The Run of each seed."""
        return list(self.members)


def join_seeds(runs: Sequence[Run]) -> list[Run]:
    """Put Runs of one command together that were made one seed at a time.

    Args:
        runs: The Runs; one that is over seeds already stays as it is.
    Returns:
        The Runs, those joined in the place of their first.
    """
    groups: dict[int, list[Run]] = {}
    for run in runs:
        place = next((n for n, found in groups.items() if _are_kin(found, run)), len(groups))
        groups.setdefault(place, []).append(run)
    return [_join(group) if len(group) > 1 else group[0] for group in groups.values()]


def _are_kin(group: Sequence[Run], run: Run) -> bool:
    seeds = [one.record["seed"] for one in group]
    mine, theirs = _command(run), _command(group[0])
    # An option that one of the two does not know came with a later version.
    shared = mine.keys() & theirs.keys()
    return run.record["seed"] not in seeds and all(mine[key] == theirs[key] for key in shared)


def _command(run: Run) -> Mapping[str, Any]:
    """What was asked but for the seed; a Run over seeds is like no other."""
    record = run.record
    config = {f"--{k}": v for k, v in record["config"].items() if k not in BESIDE_THE_POINT}
    data = {name: split["fingerprint"] for name, split in record["data"]["splits"].items()}
    parts = {key: record.get(key) for key in ("method", "model", "base_model_id", "method_options")}
    return {**parts, **config, "data": data, "seeds": record.get("seeds")}


def _join(group: Sequence[Run]) -> Run:
    members = sorted(group, key=lambda run: int(run.record["seed"]))
    record = seeds_record([run.record for run in members], [run.record["seed"] for run in members])
    return JoinedRun(members[0].path, record, tuple(members))

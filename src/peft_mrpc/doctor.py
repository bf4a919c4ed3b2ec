"""The command `doctor`: print what is installed, what works on what, and what a training costs."""

import sys
from collections.abc import Sequence

from peft_mrpc.cli.app import print_text, run_cli
from peft_mrpc.cli.train_arguments import parse_command_with_job
from peft_mrpc.config import DoctorConfig
from peft_mrpc.errors import UserError, raise_faults


def main(argv: Sequence[str]) -> None:
    """Parse the command line, and print the environment, the matrix or the cost estimate."""
    job, (config,) = parse_command_with_job(argv, "doctor", (DoctorConfig,))

    from peft_mrpc.distributed import prepare_processes
    from peft_mrpc.environment import format_environment
    from peft_mrpc.methods.compatibility import default_options, format_matrix
    from peft_mrpc.methods.registry import METHODS
    from peft_mrpc.training import cost_estimate
    from peft_mrpc.training.resolve import load_base_model

    prepare_processes()  # before TrainingArguments, which look for devices
    # A YAML file describes one training, with train's defaults.
    has_method, has_model = (
        name is not None or job.config.config for name in (config.method, config.model)
    )
    if job.method_options and not has_method:
        names = ", ".join(job.method_options)
        raise UserError(f"doctor: got {names}, options of some methods only. Add --method.")
    size = {"num_examples": config.num_examples, "mean_tokens": config.mean_tokens}
    raise_faults(
        [
            f"{name}: got {value}; expected at least 1."
            for name, value in size.items()
            if value is not None and value < 1
        ]
    )
    if any(size.values()) and not (has_method and has_model):
        raise UserError("doctor: got the size of a training set. Add --method and --model.")
    methods = [job.config.method] if has_method else list(METHODS)
    if has_model:
        base = load_base_model(job.config)
        lines = [f"{base.source.name}: {base.config.model_type}"]
        lines += cost_estimate.describe_methods(job, base, methods)
        if has_method and config.estimate:
            training_set = cost_estimate.measure_training_set(job, base, **size)
            lines.append(f"{training_set}: {cost_estimate.estimate_cost(job, base, training_set)}")
    else:
        lines = [] if has_method else [*format_environment(), ""]
        lines += format_matrix(
            {name: default_options(name, job.method_options) for name in methods}
        )
    print_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_cli(main))

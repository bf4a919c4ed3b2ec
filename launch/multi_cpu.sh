#!/usr/bin/env bash
# Several processes on the CPU: NUM_PROCESSES=4 launch/multi_cpu.sh hard_prompt --model ...
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
exec accelerate launch --config_file "$here/accelerate_configs/multi_cpu.yaml" \
    --num_processes "${NUM_PROCESSES:-2}" -m "peft_mrpc.$1" "${@:2}"

#!/usr/bin/env bash
# Several processes on the CPU: NUM_PROCESSES=4 launch/multi_cpu.sh hard_prompt --model ...
set -euo pipefail
# Otherwise glibc returns freed memory to the system after each step, which slows training down.
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
here=$(cd "$(dirname "$0")/.." && pwd)
exec accelerate launch --config_file "$here/accelerate_configs/multi_cpu.yaml" \
    --num_processes "${NUM_PROCESSES:-2}" -m "peft_mrpc.$1" "${@:2}"

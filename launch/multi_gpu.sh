#!/usr/bin/env bash
# All GPUs of this machine, or NUM_PROCESSES of them: launch/multi_gpu.sh hard_prompt
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
count=${NUM_PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
exec accelerate launch --config_file "$here/accelerate_configs/multi_gpu.yaml" \
    --num_processes "$count" -m "peft_mrpc.$1" "${@:2}"

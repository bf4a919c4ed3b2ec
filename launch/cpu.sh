#!/usr/bin/env bash
# One process on the CPU: launch/cpu.sh train --method layer_freeze --model builtin:minilm ...
set -euo pipefail
# Otherwise glibc returns freed memory to the system after each step, which slows training down.
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
here=$(cd "$(dirname "$0")/.." && pwd)
exec accelerate launch --config_file "$here/accelerate_configs/cpu.yaml" -m "peft_mrpc.$1" "${@:2}"

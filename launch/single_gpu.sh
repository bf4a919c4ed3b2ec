#!/usr/bin/env bash
# One GPU: launch/single_gpu.sh train --method prompt_tuning
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
exec accelerate launch --config_file "$here/accelerate_configs/single_gpu.yaml" \
    -m "peft_mrpc.$1" "${@:2}"

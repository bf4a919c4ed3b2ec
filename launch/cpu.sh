#!/usr/bin/env bash
# One process on the CPU: launch/cpu.sh train --method layer_freeze --model builtin:minilm ...
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
exec accelerate launch --config_file "$here/accelerate_configs/cpu.yaml" -m "peft_mrpc.$1" "${@:2}"

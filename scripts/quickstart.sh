#!/usr/bin/env bash
# Install, then take a tiny random model all the way: checkpoint, engines for two GPUs, and what is inside them.
# Everything is written below build/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh
out=build/quickstart
mkdir -p "$out"
sala=.venv/bin/sala-export

"$sala" random-checkpoint "$out/tiny" --preset tiny --force
for gpu in rtx5090 a6000; do
    "$sala" build --gpu "$gpu" --model "$out/tiny" --output "$out/tiny-$gpu.sala" --force
    "$sala" inspect "$out/tiny-$gpu.sala"
done
# Random weights speak in random syllables; what matters is that the bundle answers on this machine.
"$sala" generate "$out/tiny-rtx5090.sala" --prompt "Hello" --max-new-tokens 16
echo

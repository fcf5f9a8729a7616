#!/usr/bin/env bash
# Install, then take a tiny random model all the way: checkpoint, one engine for every RTX card, and an answer.
# Everything is written below build/quickstart.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh
out=build/quickstart
mkdir -p "$out"
sala=.venv/bin/sala-export

"$sala" random-checkpoint "$out/tiny" --preset tiny --force
"$sala" build --gpu rtx --model "$out/tiny" --output "$out/tiny.sala" --force
"$sala" inspect "$out/tiny.sala"
# Random weights speak in random syllables; what matters is that the bundle answers on this machine.
"$sala" generate "$out/tiny.sala" --prompt "Hello" --max-new-tokens 16
echo

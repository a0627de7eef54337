#!/usr/bin/env bash
# Build a clean clone on a PATH without compiler, linker and assembler: zig has to come as a wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(python3 -c 'import sys; print(sys.executable)')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/bin"
IFS=: read -ra folders <<<"$PATH"
for folder in "${folders[@]}"; do
    ln -s -t "$work/bin" "$folder"/* 2>/dev/null || true # the first of a name is found first, as on PATH
done
for tool in cc gcc g++ c++ cpp c89 c99 clang tcc ld as; do
    rm -f "$work/bin/$tool" "$work/bin/$tool"-* "$work/bin/$tool".* "$work"/bin/*-{"$tool","$tool"-*}
done
export PATH=$work/bin
unset CC
for tool in cc gcc clang ld as; do
    ! command -v "$tool" || { echo "$tool is still found"; exit 1; }
done

git clone --quiet . "$work/clone"
cd "$work/clone"
"$python" -m venv .venv
time .venv/bin/pip install --quiet -e .
.venv/bin/python -c 'from batchzip.core.build import COMPILER as c; print(c); assert c.startswith("zig")'
.venv/bin/python .ci/smoke.py
.venv/bin/batchzip swap --workload-mib 8

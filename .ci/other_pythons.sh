#!/usr/bin/env bash
# The smoke test and a short swap on each other supported Python that is installed and really runs.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for version in 3.12 3.13 3.14; do
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
        # A shim of pyenv is there for every version and runs only those that are chosen.
        "$python" -c pass 2>/dev/null || continue
        echo "-- $("$python" --version), $python"
        "$python" -m venv "$work/$version"
        "$work/$version/bin/pip" install --quiet "$root"
        (
            cd "$work"
            "$work/$version/bin/python" "$root/.ci/smoke.py"
            "$work/$version/bin/batchzip" swap --workload-mib 8
        )
        continue 2
    done
    echo "-- Python $version is not installed: skipped"
done

#!/usr/bin/env bash
# Run Python with a core of another profile, beside the install and without touching it:
#     .ci/with_core.sh asan -m pytest tests/unit/core/test_core_build.py
#     .ci/with_core.sh coverage -m pytest tests      (line coverage of the .pyx files, CPython 3.11)
# The tree is build/trees/PROFILE: a copy of the packages with their core, and links to the rest.
# With KEEP_TREE=1 a tree that is there is used as it is, so that several runs can share it.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,6s/^# \?//p' "$0"; exit 2; }
profile=$1
shift
root=$PWD
python=$root/.venv/bin/python
tree=$root/build/trees/$profile
if [ "$profile" = fuzz ] && [ -z "${CC:-}" ]; then
    CC=$(compgen -c clang | grep -xE 'clang(-[0-9]+)?' | sort -V | tail -1 || true)
    export CC=${CC:?the profile fuzz needs clang: apt install clang}
fi
if [ -z "${KEEP_TREE:-}" ] || [ ! -d "$tree" ]; then
    rm -rf "$tree" # what has gone from the sources must go there too
    mkdir -p "$tree"
    for rest in tests examples docs hatch_build.py pyproject.toml README.md; do ln -sfn "$root/$rest" "$tree/$rest"; done
    BATCHZIP_CORE_PROFILE=$profile "$python" hatch_build.py --into "$tree"
fi

cd "$tree"
export PYTHONPATH=$tree
cc=${CC:-cc}
case $profile in
    asan)
        # Python itself is not instrumented: its own leaks are none of ours. libstdc++ comes along
        # because the sanitizer looks for its throw at the start, and modules load it later.
        preload="$($cc -print-file-name=libasan.so) $($cc -print-file-name=libstdc++.so)"
        export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
        # PYTHONMALLOC: otherwise overruns within Python's own arenas go unseen.
        LD_PRELOAD=$preload PYTHONMALLOC=malloc exec "$python" "$@" ;;
    fuzz)
        # atheris brings libFuzzer and the sanitizer's runtime in one library.
        fuzzer=$("$python" -c 'import atheris, pathlib; print(pathlib.Path(atheris.path()) / "asan_with_fuzzer.so")')
        export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
        LD_PRELOAD="$fuzzer $($CC -print-file-name=libstdc++.so)" PYTHONMALLOC=malloc exec "$python" "$@" ;;
    tsan)
        export TSAN_OPTIONS=halt_on_error=1
        LD_PRELOAD=$($cc -print-file-name=libtsan.so) exec "$python" "$@" ;;
    coverage)
        "$python" -m coverage run "$@"
        exec "$python" -m coverage report ;;
    *)
        exec "$python" "$@" ;;
esac

#!/bin/sh
# On a machine with a GPU where nothing is installed but torch, triton, numpy and the like: sh tests/bench/gpu.sh [FOLDER] [OPTIONS]
# The root folders are one package; links under build/linked make it importable without installing.
set -e
out=${1:-build/gpu}
[ $# -gt 0 ] && shift
rm -rf build/linked && mkdir -p build/linked/dlcompiler
for path in dlcompiler/*; do ln -s "../../../$path" "build/linked/$path"; done
for folder in ir passes codegen runtime; do ln -s "../../../$folder" "build/linked/dlcompiler/$folder"; done
# PYTHONSAFEPATH: else this folder comes first, where the package is not whole
PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PYTHONPATH="$PWD/build/linked:$PWD" exec "${PYTHON:-python3}" -m tests.bench.gpu --output "$out" "$@"

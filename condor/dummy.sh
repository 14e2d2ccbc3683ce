#!/usr/bin/env bash
set -euo pipefail
if [ $# -ne 2 ]; then
  echo "usage: dummy.sh NAME SECONDS, got $# arguments" >&2
  exit 2
fi
project=$(dirname "${BASH_SOURCE[0]}")/..
echo "$1 on $(hostname), $(uname -m), glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2), in $PWD"
echo "threads: OMP_NUM_THREADS=${OMP_NUM_THREADS:-unset}; GPUs: ${CUDA_VISIBLE_DEVICES:-none}"
if [ -x .venv/bin/python ] || [ -x "$project/.venv/bin/python" ]; then
  echo "the project and its .venv are visible here: use train.job"
else
  echo "the project or its .venv is not visible here: use train_transfer.job"
fi
sleep "$2"

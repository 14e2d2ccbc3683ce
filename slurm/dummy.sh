#!/usr/bin/env bash
set -euo pipefail
if [ $# -ne 2 ]; then
  echo "usage: dummy.sh NAME SECONDS, got $# arguments" >&2
  exit 2
fi
echo "$1 on $(hostname), $(uname -m), in $PWD"
echo "threads: OMP_NUM_THREADS=${OMP_NUM_THREADS:-unset}; GPUs: ${CUDA_VISIBLE_DEVICES:-none}"
if [ -x .venv/bin/python ]; then
  echo "the project and its .venv are visible here: use train.sbatch"
else
  echo "the project or its .venv is not visible here: start sbatch in the project's root, on a disk that all machines share"
fi
sleep "$2"

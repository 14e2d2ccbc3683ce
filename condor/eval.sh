#!/usr/bin/env bash
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: eval.sh NAME CHECKPOINT SEED [OPTION ...], got $# arguments" >&2
  exit 2
fi
name=$1 checkpoint=$2 seed=$3
shift 3
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Change: your Python, if it is not the one that `make install` put here.
python=${MPN_RL_PYTHON:-.venv/bin/python}

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" main.py eval --experiment-name "$name" --checkpoint "$checkpoint" --seed "$seed" \
  --num-eval-episodes 100 "$@"

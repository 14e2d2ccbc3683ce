#!/usr/bin/env bash
set -euo pipefail
if [ $# -lt 5 ]; then
  echo "usage: train.sh SEED ETA LAMBDA HIDDEN NAME [OPTION ...], got $# arguments" >&2
  exit 2
fi
seed=$1 eta=$2 lambda=$3 hidden=$4 name=$5
shift 5

# Change: your Python, if it is not the one that `make install` put here.
python=${MPN_RL_PYTHON:-.venv/bin/python}

if [ "${_CONDOR_SCRATCH_DIR:-none}" -ef . ]; then
  [ -d python ] || tar -xzf condor/python.tar.gz
  mkdir -p "experiments/$name"
  python=python/bin/python
else
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" main.py train --experiment-name "$name" --seed "$seed" --eta "$eta" --lambda-decay "$lambda" \
  --hidden-dim "$hidden" --resume auto --checkpoint-exit-code 85 --checkpoint-exit-every 60 "$@"

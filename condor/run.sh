#!/usr/bin/env bash
# Run main.py with the given options, on this machine or as a job: condor/run.sh train --experiment-name try --seed 1
set -euo pipefail

# Change: your Python, if it is not the one that `make install` installed here.
python=${MPN_RL_PYTHON:-.venv/bin/python}

if [ "${_CONDOR_SCRATCH_DIR:-none}" -ef . ]; then  # no shared disk: this folder contains only the transferred files
  [ -d python ] || [ ! -e condor/python.tar.gz ] || tar -xzf condor/python.tar.gz
  [[ "$*" =~ --experiment-name[\ =]([^ ]+) ]] && mkdir -p "experiments/${BASH_REMATCH[1]}"
  [ ! -d python ] || python=python/bin/python  # else that of a container image
else
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
fi
if [ "${1:-}" = --row ]; then  # --row FILE N: the options are in line N of FILE, counted from 0 and separated by tabs
  IFS=$'\t' read -r -a options < <(sed -n "$((${3:?} + 1))p" "${2:?}") || { echo "run.sh: no line $3 in $2" >&2; exit 2; }
  set -- "${options[@]}"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" main.py "$@"

#!/usr/bin/env bash
# Run main.py with the given options, on this machine or as a Slurm task: slurm/run.sh train --experiment-name try --seed 1
# SIGTERM goes on to main.py, which saves a checkpoint; the task then goes back to the queue.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

# Change: your Python, if it is not the one that `make install` installed here.
python=${MPN_RL_PYTHON:-.venv/bin/python}

if [ "${1:-}" = --row ]; then  # --row FILE N: the options are in line N of FILE, counted from 0 and separated by tabs
  IFS=$'\t' read -r -a options < <(sed -n "$((${3:?} + 1))p" "${2:?}") || { echo "run.sh: no line $3 in $2" >&2; exit 2; }
  set -- "${options[@]}"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

child='' stopped=''
trap 'stopped=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM

run() {  # run a command; sets status
  "$@" &
  child=$!
  wait "$child"; status=$?
  while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done  # a signal ends `wait` early
  child=''
}

requeue() {  # nobody may have cancelled the task
  local task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}
  task=${task:-${SLURM_JOB_ID:-}}
  if [ -n "$task" ] && [[ $(scontrol show job "$task") == *JobState=RUNNING* ]]; then scontrol requeue "$task"; fi
}

pauses=(5 20 80 320) failures=0
while true; do
  run "$python" main.py "$@"
  case $status in
    0 | 2) exit "$status" ;;                                # complete; a wrong option, which would be wrong again
    85) [ -n "$stopped" ] || continue ;;                    # saved, to be started again
    75)                                                     # a condition that may pass, such as a full disk
      if [ -z "$stopped" ]; then
        [ ${#pauses[@]} -gt 0 ] || exit 75
        run sleep "${pauses[0]}"
        pauses=("${pauses[@]:1}")
      fi ;;
    *) failures=$((failures + 1)); [ -n "$stopped" ] || [ "$failures" -lt 3 ] || exit "$status" ;;
  esac
  if [ -n "$stopped" ]; then requeue; exit 85; fi
done

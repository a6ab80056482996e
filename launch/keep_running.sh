#!/usr/bin/env bash
# Starts a run again, from its last checkpoint, until it has ended:
#
#   launch/keep_running.sh deepspeed launch/step1.py --config configs/single_gpu.toml
#
# Again: a process that crashed, was killed, or was told to stop (exit 75) though this script was
# not. Not again: success (0), bad input (2), a goal that was missed (3). SIGTERM to this script is
# passed on, and ends it with 75 once the run is saved. MAX_RESTARTS (10) bounds it.
set -uo pipefail
(($#)) || { echo "usage: launch/keep_running.sh COMMAND ..." >&2; exit 2; }

told=0 child=0
stop() { told=1; ((child)) && kill -TERM "$child" 2>/dev/null; }
trap stop TERM INT

for ((restarts = 0; ; restarts++)); do
  "$@" --resume auto &
  child=$!
  wait "$child"
  status=$?
  # A trap ends `wait` before the run has: wait for the run itself.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
  case $status in 0 | 2 | 3) exit "$status" ;; esac
  ((told)) && exit "$status"
  ((restarts < ${MAX_RESTARTS:-10})) || { echo "gave up after $restarts restarts" >&2; exit "$status"; }
  echo "the run ended with status $status; starting it again" >&2
done

#!/usr/bin/env bash
# Starts a run again, from its last checkpoint, until it has ended:
#
#   launch/keep_running.sh torchrun --nproc_per_node 2 launch/step1.py --config configs/quick.toml
#
# Again: a process that was killed, crashed, or was told to stop (exit 75) though this script was
# not. Not again: success (0), bad input (2), a goal that was missed (3), and an error that comes a
# second time without a new checkpoint: it will come always. SIGTERM to this script is passed on,
# and ends it with 75 once the run is saved. Nor a launcher that fails twice before anything of
# distforge has begun. MAX_RESTARTS (10) bounds it, and STOP_SECONDS (600) how long ranks may take to
# save once their launcher is gone.
#
# How the run ended is read from what it writes itself: torchrun turns every other status into 1.
# On several nodes without ssh it runs on each. Over ssh it runs once, on the first node, and knows
# what ranks wrote to disks that it sees.
set -uo pipefail
(($#)) || { echo "usage: launch/keep_running.sh COMMAND ..." >&2; exit 2; }

place=$(mktemp -d "$PWD/.keep_running.XXXXXX") || exit 2
trap 'rm -rf "$place"' EXIT
export DISTFORGE_OUTCOME=$place/outcome.json

# What one rank alone knows, that it was refused or crashed, is why all of them ended. Another
# node's own file is for a disk on which rank 0's is not.
told_by() {
  local file
  for file in "$DISTFORGE_OUTCOME".rank* "$DISTFORGE_OUTCOME" "$DISTFORGE_OUTCOME".node*; do
    [[ -e $file ]] && { echo "$file"; return; }
  done
}
field() { sed -n "s/^  \"$1\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}\$/\1/p" "$(told_by)" 2>/dev/null; }

# Over ssh DeepSpeed passes on variables of few names, and those of a file: ours, and the user's.
environment() {
  local name=${DS_ENV_FILE:-.deepspeed_env} file
  env | grep '^DISTFORGE_'
  for file in "$HOME/$name" "$name"; do [[ -f $file ]] && grep = "$file"; done
  echo "DISTFORGE_OUTCOME=$DISTFORGE_OUTCOME"
}
environment > "$place/environment"
export DS_ENV_FILE=$place/environment

# DeepSpeed's launcher ends at once where it is told to or killed; its ranks save first, and rank 0
# tells last. Processes of this run are known by what they were given.
wait_for_ranks() {
  local until=$((SECONDS + ${STOP_SECONDS:-600}))
  while [[ $(field ended) == running ]] && ((SECONDS < until)) &&
    grep -qszFx "DISTFORGE_OUTCOME=$DISTFORGE_OUTCOME" /proc/[0-9]*/environ; do
    sleep 0.2
  done
}

told=0 child=0 before= not_begun=0
stop() { told=1; ((child)) && kill -TERM "$child" 2>/dev/null; }
trap stop TERM INT

for ((restarts = 0; ; restarts++)); do
  rm -f "$DISTFORGE_OUTCOME"*
  began=$SECONDS
  "$@" --resume auto &
  child=$!
  wait "$child"
  status=$?
  # A trap ends `wait` before the run has: wait for the run itself.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; status=$?; done
  wait_for_ranks
  child=0
  case $(field ended) in
    running | "") ;;                                      # it was killed
    lost) ((status == 2)) || status=$(field status) ;;    # 2: another node's rank was refused
    *) status=$(field status) ;;
  esac
  case $status in 0 | 2 | 3) exit "$status" ;; esac
  ((told)) && exit "$status"
  error=
  if [[ -z $(told_by) ]] && ((SECONDS - began < 60)); then
    if ((not_begun)); then
      echo "the launcher failed twice before distforge began, and says why above;" \
        "'distforge doctor --hostfile FILE' checks a hostfile" >&2
      exit "$status"
    fi
    not_begun=1
  else
    not_begun=0
  fi
  if [[ $(field ended) == crashed ]]; then
    why=$(field why)
    error="${why//[0-9]/} at $(field progress)"
    if [[ $error == "$before" ]]; then
      echo "the same error came twice without a new checkpoint, so it will come again: $why" >&2
      exit "$status"
    fi
  fi
  before=$error
  ((restarts < ${MAX_RESTARTS:-10})) || { echo "gave up after $restarts restarts" >&2; exit "$status"; }
  echo "the run ended with status $status; starting it again" >&2
done

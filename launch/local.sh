#!/usr/bin/env bash
# One machine with one or more GPUs: one process uses all of them. Started again for as long as it ends with 75.
#   launch/local.sh --config=celeba_ldm4 --workdir=runs/celeba --config.first_stage.checkpoint=runs/vq_f4
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
stopped=75 # the exit code of train.py for "stopped, start me again" (docs/training.md)

asked=
child=
# Ctrl-C, SIGTERM and SIGUSR1 go to train.py, which saves; then this script ends, too.
trap 'asked=1; if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null; fi' INT TERM USR1
while true; do
    "${PYTHON:-python}" train.py --require-accelerator "$@" &
    child=$!
    if [[ -n $asked ]]; then # before it was there
        kill -TERM "$child" 2>/dev/null
    fi
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting, not the process
        wait "$child"
        code=$?
    done
    if [[ $code -ne $stopped || -n $asked ]]; then
        exit "$code"
    fi
    echo "started again" >&2
done

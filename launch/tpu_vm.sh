#!/usr/bin/env bash
# A TPU pod slice of Cloud TPU VMs: the same command on every host. ldm_jax is installed there, and DIR is a folder that
# all hosts share (Filestore, or a bucket that is mounted with gcsfuse).
#   TPU=my-pod ZONE=us-east5-a DIR=/mnt/shared/ldm_jax launch/tpu_vm.sh --config=imagenet_ldm4 --workdir=runs/imagenet ...
set -euo pipefail
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}" "${DIR:?the folder of train.py on the hosts}"

printf -v arguments '%q ' "$@"
# Exit code 75 means "stopped, start me again". Above 128 the process was ended by a signal, and the others end with 75,
# or JAX ends them (134): it is started again, too, 20 times at most; not after Ctrl-C and SIGTERM (130, 143). Other codes
# end the loop on all hosts alike.
command="cd $(printf %q "$DIR") && died=0; while true; do \
python3 train.py --distributed --require-accelerator $arguments; code=\$?; \
case \$code in 75) ;; 130 | 143) exit \$code ;; \
*) died=\$((died + 1)); [ \$code -gt 128 ] && [ \$died -le 20 ] || exit \$code ;; esac; done"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"

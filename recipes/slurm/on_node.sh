#!/bin/bash
# What each node of a job runs: `srun bash recipes/slurm/on_node.sh RECIPE [ARGUMENT ...]`.
#
# One torchrun, that meets the other nodes' on the one that srun was called on. SIGUSR1 says that the
# time is nearly up: the run saves and ends, and this ends with 254, more than any other exit code,
# for srun says the highest. NPROC is how many processes; else as many as there are GPUs for the job.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # in a container it need not be installed
asked="" status=0
trap 'asked=yes; trap : TERM' USR1 # srun ends the other nodes' as soon as one has ended
# torchrun would end on the signal. Ignored around it, it is ignored by it too, and its processes
# listen to it once they train.
(
    trap '' USR1
    exec torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${NPROC:-${SLURM_GPUS_ON_NODE:-1}}" \
        --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
        --rdzv_endpoint="${MASTER_ADDR:-$SLURM_LAUNCH_NODE_IPADDR}:$((20000 + SLURM_JOB_ID % 20000))" \
        "$@"
) &
until wait $!; status=$?; ! kill -0 $! 2> /dev/null; do :; done
[[ -z $asked || $status == 0 ]] || status=254
exit "$status"

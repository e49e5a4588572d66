#!/bin/bash
# Each node of a job runs this: `srun bash recipes/slurm/on_node.sh RECIPE [ARGUMENT ...]`.
#
# It starts one torchrun, which meets those of the other nodes on the first node, RENDEZVOUS_HOST.
# SIGUSR1 means that the time is nearly up: the run saves and ends. A step that is not training is
# ended after GRACE seconds (240), and what it has finished is kept. The exit code is then 254, because
# srun reports the highest one. NPROC is the number of processes; default: the node's GPUs in this job.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # a container then needs no installed package
asked='' timer='' status=0
# shellcheck disable=SC2317  # the trap calls it
ask() {
    [[ -z $asked ]] || return
    asked=$SECONDS
    # Its output is closed, because srun waits for every process that could still print. torchrun
    # itself may take a while to end.
    (sleep "${GRACE:-240}"; kill "$run"; sleep 30; kill -KILL "$run") &> /dev/null &
    timer=$!
}
trap ask USR1
# torchrun would end on the signal. This subshell ignores the signal, so torchrun ignores it too; its
# processes handle it as soon as they train.
(
    trap '' USR1
    exec torchrun --nnodes="$SLURM_NNODES" --nproc_per_node="${NPROC:-${SLURM_GPUS_ON_NODE:-1}}" \
        --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
        --rdzv_endpoint="$RENDEZVOUS_HOST:$((20000 + SLURM_JOB_ID % 20000))" \
        --rdzv_conf=is_host=$((SLURM_NODEID == 0)) "$@"
) &
run=$!
until wait "$run"; status=$?; ! kill -0 "$run" 2> /dev/null; do :; done
if [[ -n $asked && $status != 0 ]]; then
    status=254
    # srun ends the other nodes' processes as soon as one node has ended, and then reports another
    # code. So all nodes end at the same time.
    trap '' TERM
    kill "$timer" 2> /dev/null
    late=$((asked + ${GRACE:-240}))
    sleep $((SECONDS < late ? 10 : late + 40 - SECONDS))
fi
exit "$status"

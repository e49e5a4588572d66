#!/bin/bash
# What each node of a job runs: `srun bash recipes/slurm/on_node.sh RECIPE [ARGUMENT ...]`.
#
# One torchrun, that meets the other nodes' on the first one, RENDEZVOUS_HOST. SIGUSR1 says that the
# time is nearly up: the run saves and ends. What does not train has GRACE seconds (240) until it is
# ended: what it has done so far is kept. The exit code is then 254, for srun says the highest. NPROC
# is how many processes; else as many as there are GPUs for the job.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # in a container it need not be installed
asked='' timer='' status=0
# shellcheck disable=SC2317  # the trap calls it
ask() {
    [[ -z $asked ]] || return
    asked=$SECONDS
    # Without its output: srun waits for who could still print. torchrun may take a while itself.
    (sleep "${GRACE:-240}"; kill "$run"; sleep 30; kill -KILL "$run") &> /dev/null &
    timer=$!
}
trap ask USR1
# torchrun would end on the signal. Ignored around it, it is ignored by it too, and its processes
# listen to it once they train.
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
    # srun ends the other nodes' as soon as one has ended, and then says another code: all of them
    # end at a time.
    trap '' TERM
    kill "$timer" 2> /dev/null
    late=$((asked + ${GRACE:-240}))
    sleep $((SECONDS < late ? 10 : late + 40 - SECONDS))
fi
exit "$status"

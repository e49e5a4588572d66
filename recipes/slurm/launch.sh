# shellcheck shell=bash
# What the scripts beside it share: `launch RECIPE [ARGUMENT ...]` within a job.
#
# When SLURM says that the time is nearly up (--signal=B:USR1@SECONDS; `scancel --signal=USR1` asks
# for the same), the run saves and ends, and the job is put back into the queue, where it goes on
# from what it saved. Set before, if need be:
#
#   NPROC             processes a node; else as many as it has GPUs in this job
#   CONTAINER_IMAGE   for pyxis' --container-image; CONTAINER_MOUNTS for --container-mounts
#   GRACE             seconds that the run has to save in (240)
#   REQUEUES          how often the job may be put back (100): work that cannot be kept, and takes
#                     longer than the job's time, would be begun again for ever

launch() {
    local container=()
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        container=(--container-image="$CONTAINER_IMAGE" --container-workdir="$PWD")
        container+=(--container-mounts="${CONTAINER_MOUNTS:-$PWD}")
    fi
    export RENDEZVOUS_HOST
    RENDEZVOUS_HOST=$(hostname)
    local status=0 asked=''
    srun --kill-on-bad-exit=1 "${container[@]}" bash recipes/slurm/on_node.sh "$@" &
    local step=$!
    trap 'asked=yes; kill -USR1 "$step"' USR1
    until wait "$step"; status=$?; ! kill -0 "$step" 2> /dev/null; do :; done
    if [[ $status == 254 || (-n $asked && $status != 0) ]]; then
        # An array's last task has the number of the whole array, which would be put back with it.
        local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
        if ((${SLURM_RESTART_COUNT:-0} < ${REQUEUES:-100})); then
            echo "job ${job:=$SLURM_JOB_ID} is out of time: back into the queue"
            exec scontrol requeue "$job"
        fi
        echo "job ${job:-$SLURM_JOB_ID} is out of time, and was put back REQUEUES=${REQUEUES:-100} times"
    fi
    return "$status"
}

# shellcheck shell=bash
# The scripts beside this file source it and call `launch RECIPE [ARGUMENT ...]` within a job.
#
# When SLURM signals that the time is nearly up (--signal=B:USR1@SECONDS; `scancel --signal=USR1` does
# the same by hand), the run saves and ends. The job is then put back into the queue, where it later
# continues from what it saved. You can set these variables before the call:
#
#   NPROC             processes per node; default: the GPUs that the node has in this job
#   CONTAINER_IMAGE   for pyxis' --container-image; CONTAINER_MOUNTS for --container-mounts
#   GRACE             seconds that the run has for saving (240)
#   REQUEUES          how often the job may be put back (100); without this limit, work that cannot be
#                     saved and takes longer than the job's time would start again forever

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
        # The last task of an array has the job number of the whole array: requeueing that number
        # would put back every task.
        local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
        if ((${SLURM_RESTART_COUNT:-0} < ${REQUEUES:-100})); then
            echo "job ${job:=$SLURM_JOB_ID} is out of time: back into the queue"
            exec scontrol requeue "$job"
        fi
        echo "job ${job:-$SLURM_JOB_ID} is out of time and stays ended: it was already put back REQUEUES=${REQUEUES:-100} times"
    fi
    return "$status"
}

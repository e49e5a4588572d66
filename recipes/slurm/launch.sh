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

launch() {
    local container=()
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        container=(--container-image="$CONTAINER_IMAGE" --container-workdir="$PWD")
        container+=(--container-mounts="${CONTAINER_MOUNTS:-$PWD}")
    fi
    local status=0 left=''
    srun --kill-on-bad-exit=1 "${container[@]}" bash recipes/slurm/on_node.sh "$@" &
    local step=$!
    trap 'left=${GRACE:-240}; kill -USR1 "$step"' USR1
    until wait "$step"; status=$?; ! kill -0 "$step" 2> /dev/null; do
        # Not one that trains: what it has done so far is kept, and it is ended.
        while [[ -n $left ]] && kill -0 "$step" 2> /dev/null; do
            ((left-- > 0)) || break 2
            sleep 1
        done
    done
    if [[ $status == 254 || $left == -1 ]]; then
        echo "job $SLURM_JOB_ID is out of time: back into the queue"
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}

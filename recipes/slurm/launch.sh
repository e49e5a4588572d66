# shellcheck shell=bash
# What the .sbatch scripts beside it share: `launch RECIPE [ARGUMENT ...]` within a job.
#
# One torchrun a node, that meet on the job's first node. When SLURM says that the time is nearly up
# (--signal=B:USR1@SECONDS; `scancel --signal=USR1` asks for the same), the run saves and ends, and
# the job is put back into the queue, where it goes on from what it saved. Set before:
#
#   NPROC             processes a node; else as many as it has GPUs in this job
#   CONTAINER_IMAGE   for pyxis' --container-image; CONTAINER_MOUNTS for --container-mounts
#   GRACE             seconds that the run has to save in (240)

# What a node's part ends with when it was asked to: more than any other, and srun says the highest.
ASKED=254

# On each node. torchrun would end on the signal: ignored around it, it is ignored by torchrun, and
# its processes listen to it once they train.
# shellcheck disable=SC2016  # for the shell on the node
ON_NODE='
    asked="" status=0
    trap "asked=yes; trap : TERM" USR1  # the first node to end would end the others otherwise
    (trap "" USR1; exec "${@:2}") &
    until wait $!; status=$?; ! kill -0 $! 2>/dev/null; do :; done
    [[ -z $asked || $status == 0 ]] || status=$1
    exit "$status"
'

launch() {
    local torchrun=(
        torchrun
        --nnodes="$SLURM_JOB_NUM_NODES"
        --nproc_per_node="${NPROC:-${SLURM_GPUS_ON_NODE:-1}}"
        --rdzv_backend=c10d
        --rdzv_endpoint="$(hostname):$((20000 + SLURM_JOB_ID % 20000))"
        --rdzv_id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
    )
    local container=()
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        container=(--container-image="$CONTAINER_IMAGE" --container-workdir="$PWD")
        container+=(--container-mounts="${CONTAINER_MOUNTS:-$PWD}")
    fi
    local status=0 left=''
    srun --kill-on-bad-exit=1 "${container[@]}" \
        bash -c "$ON_NODE" bash "$ASKED" "${torchrun[@]}" "$@" &
    local step=$!
    trap 'left=${GRACE:-240}; kill -USR1 "$step"' USR1
    until wait "$step"; status=$?; ! kill -0 "$step" 2>/dev/null; do
        # Not one that trains: what it has done so far is kept, and it is ended.
        while [[ -n $left ]] && kill -0 "$step" 2>/dev/null; do
            ((left-- > 0)) || break 2
            sleep 1
        done
    done
    if [[ $status == "$ASKED" || $left == -1 ]]; then
        echo "job $SLURM_JOB_ID is out of time: back into the queue"
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}

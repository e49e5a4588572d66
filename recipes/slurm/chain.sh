#!/bin/bash
# Submits proxy, mixture and base model as three jobs. Each job has the nodes that it needs and starts
# after the one before it. A job whose time is up goes back into the queue and continues:
#
#   recipes/slurm/chain.sh mine.yaml [key=value ...]
#
# Start it from the root of the checkout, on a login node. `output` in mine.yaml must be a folder that
# every node sees. If you submit the chain again, finished steps are not repeated. Configuration and
# data are checked first, if the project is installed; set CHECK=no if this node cannot see the data.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# These apply to all three jobs, as do SBATCH_QOS, SBATCH_RESERVATION and others: see `man sbatch`.
# export SBATCH_ACCOUNT=mine SBATCH_PARTITION=gpus
export SBATCH_TIMELIMIT=${SBATCH_TIMELIMIT:-04:00:00}
NODES=${NODES:-4}             # nodes of the base model's job
GPUS=${GPUS:-8}               # GPUs per node
PROXY_NODES=${PROXY_NODES:-1} # nodes of the proxy's job and of the mixture's job

# source /path/to/venv/bin/activate
# export CONTAINER_IMAGE=nvcr.io/nvidia/nemo:25.09 CONTAINER_MOUNTS=/data,/home

if [[ ${1:-} == --step ]]; then # this copy runs within a job
    # shellcheck source=recipes/slurm/launch.sh
    source recipes/slurm/launch.sh
    launch "recipes/$2.py" --config "${@:3}"
    exit
fi

: "${1:?name a configuration: recipes/slurm/chain.sh mine.yaml [key=value ...]}"
# Check now, not when the last job starts.
if [[ ${CHECK:-yes} != no ]] && command -v nemo-chameleon > /dev/null; then
    nemo-chameleon check --config "$@" \
        --processes="$((NODES * ${NPROC:-$GPUS}))" \
        --proxy-processes="$((PROXY_NODES * ${NPROC:-$GPUS}))"
fi

submitted=()
submit() { # RECIPE NODES [ARGUMENT ...]
    local after=() job
    [[ ${#submitted[@]} == 0 ]] || after=(--dependency="afterok:${submitted[-1]}")
    if ! job=$(sbatch --parsable --kill-on-invalid-dep=yes --job-name="$1" --nodes="$2" \
        --gpus-per-node="$GPUS" "${after[@]}" "$0" --step "$1" "${@:3}"); then
        [[ ${#submitted[@]} == 0 ]] || scancel "${submitted[@]}" # do not leave half a chain
        exit 1
    fi
    submitted+=("${job%%;*}")
    echo "$1: job ${submitted[-1]}"
}
submit train_proxy "$PROXY_NODES" "$@"
submit compute_mixture "$PROXY_NODES" "$@"
submit pretrain_chameleon "$NODES" "$@"

#!/bin/bash
# Proxy, mixture and base model as three jobs, each of the nodes that it needs and after the one
# before it. Each goes on where it stopped when its time is up:
#
#   recipes/slurm/chain.sh mine.yaml [key=value ...]
#
# from the root of the checkout, on a login node. `output` in mine.yaml has to lie where every node
# sees it. Submitted again, what is done already is not done twice. Configuration and data are checked
# first, where the project is installed; CHECK=no, if this node does not see the data.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# For all three; SBATCH_QOS, SBATCH_RESERVATION and others that `man sbatch` lists too.
# export SBATCH_ACCOUNT=mine SBATCH_PARTITION=gpus
export SBATCH_TIMELIMIT=${SBATCH_TIMELIMIT:-04:00:00}
NODES=${NODES:-4}             # of the base model's job
GPUS=${GPUS:-8}               # of each node
PROXY_NODES=${PROXY_NODES:-1} # of the proxy's job, and of the mixture's

# source /path/to/venv/bin/activate
# export CONTAINER_IMAGE=nvcr.io/nvidia/nemo:25.09 CONTAINER_MOUNTS=/data,/home

if [[ ${1:-} == --step ]]; then # in a job
    # shellcheck source=recipes/slurm/launch.sh
    source recipes/slurm/launch.sh
    launch "recipes/$2.py" --config "${@:3}"
    exit
fi

: "${1:?the configuration: recipes/slurm/chain.sh mine.yaml [key=value ...]}"
# Now, and not when the last of them starts.
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
        [[ ${#submitted[@]} == 0 ]] || scancel "${submitted[@]}" # no half a chain
        exit 1
    fi
    submitted+=("${job%%;*}")
    echo "$1: job ${submitted[-1]}"
}
submit train_proxy "$PROXY_NODES" "$@"
submit compute_mixture "$PROXY_NODES" "$@"
submit pretrain_chameleon "$NODES" "$@"

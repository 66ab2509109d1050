#!/usr/bin/env bash
# Trains on a Kubernetes cluster that has JobSet, with GPUs or (GKE) TPUs:
#   launch/jobset.sh show gpu      the JobSet as YAML, from jobset_gpu.yaml
#   launch/jobset.sh check gpu     what the cluster would say to it; starts nothing
#   launch/jobset.sh start gpu     training; what was interrupted starts again by itself
#   launch/jobset.sh logs          what process 0 says
#   launch/jobset.sh delete        saves and ends; what is in WORKDIR stays
# What stands behind `start gpu` or `start tpu` goes to `pixelflow train`:
#   launch/jobset.sh start tpu --config.batch_size=1024
set -euo pipefail

NAME="${NAME:-pixelflow}"
IMAGE="${IMAGE:-pixelflow:latest}" # of launch/Dockerfile, in a registry
CONFIG="${CONFIG:-pixnerd:xl16_256}"
CLAIM="${CLAIM:-runs}"                   # a volume that all hosts may write, at /runs
WORKDIR="${WORKDIR:-/runs/pixnerd_xl}"   # on that volume
HOSTS="${HOSTS:-2}"                      # of a TPU: those of one slice
GPUS="${GPUS:-8}"                        # of a host; one process has them all
TPUS="${TPUS:-4}"                        # chips of a host
TPU_TYPE="${TPU_TYPE:-tpu-v5-lite-podslice}"
TOPOLOGY="${TOPOLOGY:-2x4}"              # of a slice: HOSTS x TPUS chips
SLICES="${SLICES:-1}"
RESTARTS="${RESTARTS:-100}"              # after which a failing run is given up
GRACE="${GRACE:-300}"                    # seconds to save when it is asked to end
HOPELESS="${HOPELESS:-1, 2, 77}"         # exit codes that another start cannot mend

folder="$(dirname "${BASH_SOURCE[0]}")"
names=(NAME IMAGE CONFIG CLAIM WORKDIR HOSTS GPUS TPUS TPU_TYPE TOPOLOGY SLICES)
names+=(RESTARTS GRACE HOPELESS)

show() {
  local kind="$1" text name word more=""
  for word in "${@:2}"; do
    word="${word//\\/\\\\}"
    more+=", \"${word//\"/\\\"}\""
  done
  text="$(<"$folder/jobset_$kind.yaml")"
  for name in "${names[@]}"; do
    text="${text//"\${$name}"/"${!name}"}"
  done
  printf '%s\n' "${text//"\${MORE}"/"$more"}"
}

first="jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0"
first+=",batch.kubernetes.io/job-completion-index=0"
case "${1:-} ${2:-}" in
  "show gpu" | "show tpu") show "${@:2}" ;;
  "check gpu" | "check tpu") show "${@:2}" | kubectl apply --dry-run=server -f - ;;
  "start gpu" | "start tpu") show "${@:2}" | kubectl apply -f - ;;
  "logs ") kubectl logs -f --tail=50 --selector="$first" ;;
  "delete ") kubectl delete jobset "$NAME" ;;
  *)
    echo "Give show, check or start with gpu or tpu, or logs, or delete." >&2
    exit 2
    ;;
esac

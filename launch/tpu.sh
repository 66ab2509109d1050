#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, from a machine that has gcloud:
#   launch/tpu.sh create      makes the TPU, which costs from here on
#   launch/tpu.sh install     this checkout on all its hosts
#   launch/tpu.sh doctor      what they can do, before hours are spent
#   launch/tpu.sh run         training on all hosts, in the background
#   launch/tpu.sh logs        what host 0 says
#   launch/tpu.sh stop        lets training save and end
#   launch/tpu.sh resume      goes on, on a new TPU where the old one was taken away
#   launch/tpu.sh delete      removes the TPU, which costs no more
# What stands behind doctor, run and resume goes to the command on the hosts:
#   launch/tpu.sh run --config.batch_size=1024
# DRY=1 only shows what would be called.
set -euo pipefail

NAME="${NAME:-pixelflow}"
ZONE="${ZONE:-us-central1-a}"
TYPE="${TYPE:-v5litepod-8}"               # v5litepod-16 and larger ones have many hosts
VERSION="${VERSION:-v2-alpha-tpuv5-lite}" # of a v6e: v2-alpha-tpuv6e
SPOT="${SPOT:-1}"                         # cheaper, but may be taken away; 0: may not
CONFIG="${CONFIG:-pixnerd:xl16_256}"
WORKDIR="${WORKDIR:-/mnt/runs/pixnerd_xl}" # on a disk that all hosts share
MOUNT="${MOUNT:-true}"                     # a host's first command: mounting that disk
PYTHON="${PYTHON:-3.12}"                   # the hosts' own may be too old

if [ "${DRY:-0}" = 1 ]; then
  gcloud() { printf 'gcloud%s\n' "$(printf ' %q' "$@")" >&2; }
fi
tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
on_hosts() { tpu ssh --worker="$1" --command="$2"; }

create() {
  local spot=()
  if [ "$SPOT" = 1 ]; then spot=(--spot); fi
  tpu create --accelerator-type="$TYPE" --version="$VERSION" ${spot[@]+"${spot[@]}"}
}

install() {
  local archive
  archive="$(mktemp)"
  git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --format=tar.gz HEAD >"$archive"
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:pixelflow.tar.gz" --zone="$ZONE" \
    --worker=all
  rm -f "$archive"
  on_hosts all "set -e; $MOUNT
    rm -rf source && mkdir source && tar -xzf pixelflow.tar.gz -C source
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --clear --python $PYTHON env
    python3 -m uv pip install --quiet --python env/bin/python './source[tpu]'"
}

doctor() { on_hosts all "env/bin/pixelflow doctor$(printf ' %q' "$@")"; }

run() {
  local command
  command="$(printf ' %q' train --config="$CONFIG" --workdir="$WORKDIR" "$@")"
  on_hosts all "if kill -0 \$(cat pixelflow.pid 2>/dev/null) 2>/dev/null; then
      echo 'It is running: see logs, or stop it first.' >&2; exit 1; fi
    nohup env/bin/pixelflow$command >>train.log 2>&1 </dev/null &
    echo \$! >pixelflow.pid"
}

resume() {
  local state
  state="$(tpu describe --format='value(state)' 2>/dev/null || true)"
  case "$state" in
    READY) ;;
    CREATING | STARTING | RESTARTING | REPAIRING)
      echo "$NAME is $state: give the command again when it is READY." >&2
      exit 1
      ;;
    *) # taken away, or never there
      if [ -n "$state" ]; then delete; fi
      create
      install
      ;;
  esac
  run "$@"
}

delete() { tpu delete --quiet; }

case "${1:-}" in
  create | install | delete) "$1" ;;
  doctor | run | resume) "$@" ;;
  logs) on_hosts 0 "tail -n 50 -F train.log" ;;
  stop) on_hosts all "kill -TERM \$(cat pixelflow.pid)" ;;
  *)
    echo "Give one of create, install, doctor, run, logs, stop, resume, delete." >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Starts one command as several processes on this machine, a GPU each, or on its CPU:
#   PROCESSES=2 launch/local.sh pixelflow train --config=emoji:demo --workdir=runs/demo
# Ends when all have ended; where one fails, the others are ended too.
set -euo pipefail

PROCESSES="${PROCESSES:-2}"
PORT="${PORT:-$((20000 + $$ % 20000))}" # a free one, where they meet
CPU_DEVICES="${CPU_DEVICES:-}"          # devices to make of the CPU, in each process
GRACE="${GRACE:-15}"                    # seconds from a failure until the rest is killed

if [ "$#" -eq 0 ]; then
  echo "Give the command to start: $0 pixelflow train --config=... --workdir=..." >&2
  exit 2
fi
whole() { # NAME: its value must be a number, of LEAST or more
  if ! [[ "${!1}" =~ ^[0-9]{1,6}$ ]] || ((10#${!1} < $2)); then
    echo "$1=${!1} must be a whole number of at least $2." >&2
    exit 2
  fi
}
whole PROCESSES 1
whole PORT 1
whole GRACE 0
if [ -n "$CPU_DEVICES" ]; then
  whole CPU_DEVICES 1
  count="--xla_force_host_platform_device_count=$CPU_DEVICES"
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} $count"
fi

set -m # a process group each: this script alone hears Ctrl-C, and hands it on
pids=()
for ((i = 0; i < PROCESSES; i++)); do
  JAX_LOCAL_DEVICE_IDS="$i" "$@" --coordinator="localhost:$PORT" \
    --num_processes="$PROCESSES" --process_id="$i" &
  pids+=("$!")
done
# Training saves at the first of these signals, and ends at once at the second.
trap 'kill -INT "${pids[@]}" 2>/dev/null || true' INT
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM
trap 'kill -HUP "${pids[@]}" 2>/dev/null || true' HUP # a closed terminal

code=0 failed=
while [ "${#pids[@]}" -gt 0 ]; do
  sleep 0.2 || true
  running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
    else
      status=0
      wait "$pid" || status=$?
      if [ "$status" -ne 0 ] && [ -z "$failed" ]; then
        code=$status failed=$SECONDS
      fi
    fi
  done
  pids=(${running[@]+"${running[@]}"})
  # Those that fail alike end by themselves; one that waits for the others does not.
  if [ -n "$failed" ] && ((SECONDS - failed >= GRACE)) && [ "${#pids[@]}" -gt 0 ]; then
    kill -KILL -- "${pids[@]/#/-}" 2>/dev/null || true # and their data workers
  fi
done
exit "$code"

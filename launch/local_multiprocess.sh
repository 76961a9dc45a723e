#!/usr/bin/env bash
# Several processes on this machine, one jax.distributed job: for checking multi-host code without hosts.
#   launch/local_multiprocess.sh [--dry-run] NUM_PROCESSES python -m jaxrl_reason.train --config=… --workdir=…
set -euo pipefail
dry=""
if [[ "${1:-}" == "--dry-run" ]]; then dry=1; shift; fi
if [[ $# -lt 2 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then sed -n '2,3p' "$0" >&2; exit 2; fi
count=$1; shift
port=${PORT:-$((20000 + RANDOM % 20000))}
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  settings=(JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_NUM_PROCESSES="$count" JAX_PROCESS_ID="$i")
  if [[ -n "$dry" ]]; then echo env "${settings[@]}" "$@"; continue; fi
  env "${settings[@]}" "$@" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"

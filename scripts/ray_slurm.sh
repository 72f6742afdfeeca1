#!/usr/bin/env bash
# A study on all nodes of a SLURM allocation, through Ray. See --help and docs/cluster.md.
#SBATCH --job-name=pats
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

usage() {
  cat <<'TEXT'
sbatch --nodes 4 --gpus-per-node 8 --time 08:00:00 scripts/ray_slurm.sh STUDY ARGUMENTS
bash scripts/ray_slurm.sh --help

Starts Ray's head on the first node of the allocation and a worker on each other node, then one study on the head:
python -m experiments.study --launcher ray STUDY ARGUMENTS. Submit it from the project's folder, which lies, with
its environment, data and runs, on storage that all nodes share (docs/cluster.md says what it must provide). On the login
node, once: pip install -c constraints.txt -r requirements.txt -r requirements-ray.txt

  sbatch --nodes 4 --gpus-per-node 8 scripts/ray_slurm.sh --encoder roberta-large --unequal_grids --gpus_per_run 0.5
  sbatch --nodes 8 --cpus-per-task 64 scripts/ray_slurm.sh --encoder all-MiniLM-L6-v2 --tasks cola,rte --cpus_per_run 4

Two minutes before the time limit SLURM sends SIGUSR1: every run writes a checkpoint, the study exits with 75 and the job
puts itself back into the queue, where it goes on. SIGTERM (scancel, or a preemption after which SLURM requeues) stops it
the same way without requeueing. HEAD_IP=... and PORT=... set the address of Ray's head, where the first node's
hostname --ip-address is not what the others reach. Ray's messages: ray-JOB.log.
Exit status: the study's.
TEXT
}

case ${1:-} in -h | --help) usage; exit 0 ;; esac
[[ -n ${SLURM_JOB_ID:-} ]] || { echo "error: not inside a SLURM job; submit it: sbatch scripts/ray_slurm.sh ..." >&2; exit 2; }
# SLURM runs a copy of this file from a folder of its own.
ROOT=$SLURM_SUBMIT_DIR
[[ -f $ROOT/scripts/venv.sh ]] || { echo "error: $ROOT is not the project's folder; run sbatch there" >&2; exit 2; }
cd -- "$ROOT"
# shellcheck source=scripts/venv.sh
source "$ROOT/scripts/venv.sh"
use_environment
"$PY" -c 'import ray' || die "ray is not installed in $PREFIX; pip install -r requirements-ray.txt on the login node"
export RAY_USAGE_STATS_ENABLED=0 HF_HOME=${HF_HOME:-$ROOT/.huggingface}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=${HEAD_IP:-}
[[ -n $ip ]] || read -r ip _ < <(hostname --ip-address) # this script runs on the first node
port=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
log=ray-$SLURM_JOB_ID.log
start_ray() { # COUNT WHICH_NODES ARGUMENTS...: ray start on each of these nodes, in the background
  # --num-cpus: what SLURM gives on that very node, not what the machine has. GPUs are found by CUDA_VISIBLE_DEVICES.
  # shellcheck disable=SC2016
  srun --overlap --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "$2" \
    bash -c 'exec "$0" start "$@" --num-cpus "$SLURM_CPUS_ON_NODE" --block' "$PREFIX/bin/ray" "${@:3}" >>"$log" 2>&1 &
}
start_ray 1 --nodelist="${nodes[0]}" --head --node-ip-address="$ip" --port="$port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
  --include-dashboard=false --disable-usage-stats
up=''
for _ in {1..120}; do
  if (exec 3<>"/dev/tcp/$ip/$port") 2>/dev/null; then up=1; break; fi
  sleep 1
done
[[ -n $up ]] || die "Ray's head on ${nodes[0]} ($ip:$port) did not start; see $log"
if ((${#nodes[@]} > 1)); then
  start_ray $((${#nodes[@]} - 1)) --exclude="${nodes[0]}" --address="$ip:$port"
fi
say "Ray at $ip:$port, ${#nodes[@]} nodes"

"$PY" -m experiments.study --launcher ray --address "$ip:$port" "$@" &
study=$! signalled='' requeue='' status=0
trap 'signalled=1; requeue=1; kill -USR1 "$study" 2>/dev/null || true' USR1
trap 'signalled=1; kill -TERM "$study" 2>/dev/null || true' TERM
wait "$study" || status=$?
while [[ -n $signalled ]]; do # a signal ended the wait, not the study
  signalled='' again=0
  wait "$study" || again=$?
  ((again == 127)) || status=$again # 127: it had ended before
done
# shellcheck disable=SC2046
kill $(jobs -p) 2>/dev/null || true # the nodes' Ray
if [[ $status == 75 && -n $requeue ]]; then
  say "stopped with checkpoints; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# One allocation holds it all: scheduler and client on its first node, a worker for each task, nothing on the login node.
#
#     sbatch cluster/slurm-batch.sh before.tif after.tif change.zarr model.dlpk --arguments "padding 64"
#
# takes what `geodl-dask detect-change` takes. What is said to sbatch wins over the lines below:
#
#     sbatch --partition=gpu --ntasks=32 --time=12:00:00 cluster/slurm-batch.sh ...
#
#SBATCH --job-name=geodl-dask
#SBATCH --ntasks=4                # workers, each with
#SBATCH --gpus-per-task=1         #   one GPU (0 where the model runs on CPUs),
#SBATCH --cpus-per-task=4         #   so many threads, which read and write beside it,
#SBATCH --mem-per-cpu=4G          #   and this much memory for each of them
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@180       # three minutes before that the run is stopped, and
#SBATCH --requeue                 # goes back into the queue, to go on where it was
#SBATCH --open-mode=append
#SBATCH --output=geodl-dask-%j.log
set -euo pipefail

# What your login shell does not hand on:
# module load cuda
# source /path/to/venv/bin/activate

export DASK_LOGGING__DISTRIBUTED=warning MALLOC_ARENA_MAX=1 # the latter: workers keep the memory they free
# All nodes see this file. Each start has its own: after a requeue a worker must not look for the scheduler before.
scheduler_file=$(mktemp "$PWD/.geodl-dask-$SLURM_JOB_ID-XXXX.json")
trap 'rm -f "$scheduler_file"; kill $(jobs -p) 2>/dev/null || true' EXIT

client=
stop() { # the client, which puts away what is finished, and says 143
    status=143
    if [ -n "$client" ]; then
        kill "$client" 2>/dev/null || true
        status=0
        wait "$client" || status=$?
    fi
}
requeue() {
    stop
    # 137: it hung, and was killed
    if [[ $status =~ ^(143|137)$ ]] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
    exit "$status"
}
trap requeue USR1
trap 'stop; exit "$status"' TERM # by scancel: Slurm kills what is left as soon as this script ends

# Where nodes have several networks, here and for the workers: --interface ib0
dask scheduler --scheduler-file "$scheduler_file" --port 0 --dashboard-address :0 &
until [ -s "$scheduler_file" ]; do
    kill -0 $! # ends the job if the scheduler has ended
    sleep 0.5
done

memory_mb=$((${SLURM_MEM_PER_CPU:-0} * SLURM_CPUS_PER_TASK)) # 0: no limit but Slurm's
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" dask worker --scheduler-file "$scheduler_file" \
    --nthreads "$SLURM_CPUS_PER_TASK" --memory-limit "${memory_mb}MiB" \
    --local-directory "${TMPDIR:-/tmp}" --dashboard-address :0 --death-timeout 300 &
workers=$!

# timeout only kills what hangs when it is stopped: after 90 seconds. 0: it has no time of its own.
timeout --kill-after=90 0 \
    geodl-dask detect-change "$@" --cluster "$scheduler_file" --resume &
client=$!

status=0
wait -n "$client" "$workers" || status=$?
if kill -0 "$client" 2>/dev/null; then
    echo "All workers have ended, and their messages above say why." >&2
    stop
    exit 1
fi
exit "$status"

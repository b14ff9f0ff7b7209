#!/usr/bin/env bash
# A job array: each of its jobs computes a share of the blocks of one result, alone, with the GPUs of its own node.
#
#     jobs=$(sbatch --parsable cluster/slurm-array.sh before.tif after.tif change.zarr model.dlpk)
#     sbatch --dependency="afterok:$jobs" --wrap="geodl-dask finalize change.zarr"
#
# takes what `geodl-dask detect-change` takes; the second line makes the result of the shares once all are there.
# What is said to sbatch wins over the lines below, such as --array=1-64.
#
#SBATCH --job-name=geodl-dask
#SBATCH --array=1-8               # shares; 1-100%10 lets ten run at a time
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1         # 0 where the model runs on CPUs
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=4G
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@180       # three minutes before that the run is stopped, and
#SBATCH --requeue                 # goes back into the queue, to go on where it was
#SBATCH --open-mode=append
#SBATCH --output=geodl-dask-%A_%a.log
set -euo pipefail

# What your login shell does not hand on:
# module load cuda
# source /path/to/venv/bin/activate

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

# timeout only kills what hangs when it is stopped: after 90 seconds. 0: it has no time of its own.
timeout --kill-after=90 0 \
    geodl-dask detect-change "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" --resume &
client=$!
wait "$client"

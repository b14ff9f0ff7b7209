#!/usr/bin/env bash
# A job array: each of its jobs computes a share of the blocks of one result, alone, with the GPUs of its own node.
#
#     jobs=$(qsub -v FROM=before.tif,TO=after.tif,OUT=change.zarr,MODEL=model.dlpk cluster/pbs-array.sh)
#     qsub -W depend=afterany:$jobs -v FROM=...,TO=...,OUT=...,MODEL=... cluster/pbs-finalize.sh
#
# PBS hands no arguments to a script: what your jobs need goes into the lines that follow. A job that its time was too
# short for, or that was killed, is made up for by pbs-finalize.sh, which submits this again where a share is missing.
#
#PBS -N geodl-dask
#PBS -J 1-8
#PBS -l select=1:ncpus=4:ngpus=1:mem=16gb
#PBS -l walltime=02:00:00
#PBS -j oe
#PBS -r y
set -euo pipefail

shards=${SHARDS:-8}               # as many as the line -J above says
options=()                        # such as (--arguments "padding 64;batch_size 16" --confidence uint8)
stop_after=${STOP_AFTER:-115m}    # a little less than the walltime, so that the run puts away what it has finished

# What qsub does not hand on of your login shell:
# module load cuda
# source /path/to/venv/bin/activate

cd "$PBS_O_WORKDIR"
exec timeout --kill-after=2m "$stop_after" \
    geodl-dask detect-change "$FROM" "$TO" "$OUT" "$MODEL" "${options[@]}" \
    --shard "$PBS_ARRAY_INDEX/$shards" --resume

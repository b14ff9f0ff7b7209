#!/usr/bin/env bash
# Makes the result of the shares that pbs-array.sh has computed, or submits those again that are missing; see there.
#
#PBS -N geodl-dask-finalize
#PBS -l select=1:ncpus=2:mem=8gb
#PBS -l walltime=02:00:00
#PBS -j oe
#PBS -r y
set -euo pipefail

# What qsub does not hand on of your login shell:
# source /path/to/venv/bin/activate

cd "$PBS_O_WORKDIR"
status=0
geodl-dask finalize "$OUT" || status=$?
rounds=$((${ROUNDS:-10} - 1))     # how often the array is tried at the most
if [ "$status" -ne 1 ] || [ "$rounds" -eq 0 ]; then exit "$status"; fi # 1: blocks are missing

words="FROM=$FROM,TO=$TO,OUT=$OUT,MODEL=$MODEL"
jobs=$(qsub -v "$words" cluster/pbs-array.sh)
qsub -W "depend=afterany:$jobs" -v "$words,ROUNDS=$rounds" cluster/pbs-finalize.sh

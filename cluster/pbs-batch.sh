#!/usr/bin/env bash
# One allocation holds it all: scheduler and client on its first node, a worker for each GPU, nothing on the login node.
#
#     qsub -v FROM=before.tif,TO=after.tif,OUT=change.zarr,MODEL=model.dlpk cluster/pbs-batch.sh
#
# from the folder that holds cluster/. PBS hands no arguments to a script, and a job that submits the next one does not
# know what was said to qsub before: what your job needs goes into the lines that follow.
#
#PBS -N geodl-dask
#PBS -l select=2:ncpus=16:ngpus=4:mem=64gb
#PBS -l place=scatter
#PBS -l walltime=02:00:00
#PBS -j oe
#PBS -r y
set -euo pipefail

options=()                        # such as (--arguments "padding 64;batch_size 16" --confidence uint8)
stop_after=${STOP_AFTER:-115m}    # a little less than the walltime: then the run stops, and a new job goes on with it
workers=${WORKERS:-4}             # of a node: as many as ngpus; without GPUs the processes that share ncpus
threads=4                         # of each: ncpus shared among them
memory=16GB                       # of each: mem shared among them

set_up() { # what each node needs, because neither qsub nor pbsdsh hands on your login shell's environment
    # module load cuda
    # source /path/to/venv/bin/activate
    export DASK_LOGGING__DISTRIBUTED=warning MALLOC_ARENA_MAX=1 # the latter: workers keep the memory they free
}

if [ "${1:-}" = workers ]; then # started on each node by pbsdsh below
    set_up
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    trap 'exit 143' TERM
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((workers - 1)))}"
    for gpu in "${gpus[@]:0:workers}"; do
        CUDA_VISIBLE_DEVICES=$gpu dask worker --scheduler-file "$2" --nthreads "$threads" --memory-limit "$memory" \
            --local-directory "${TMPDIR:-/tmp}" --dashboard-address :0 --death-timeout 300 &
    done
    wait
    exit
fi

cd "$PBS_O_WORKDIR"
script=${SCRIPT:-$PWD/cluster/pbs-batch.sh} # PBS runs a copy, which other nodes do not have
set_up
scheduler_file=$(mktemp "$PWD/.geodl-dask-$PBS_JOBID-XXXX.json") # each start has its own, and all nodes see it
trap 'rm -f "$scheduler_file"; kill $(jobs -p) 2>/dev/null || true' EXIT
client=
# By qdel: PBS kills what is left as soon as this script ends.
trap 'if [ -n "$client" ]; then kill "$client" 2>/dev/null || true; wait "$client" || true; fi; exit 143' TERM

# Where nodes have several networks, here and for the workers: --interface ib0
dask scheduler --scheduler-file "$scheduler_file" --port 0 --dashboard-address :0 &
until [ -s "$scheduler_file" ]; do
    kill -0 $! # ends the job if the scheduler has ended
    sleep 0.5
done
pbsdsh -- bash "$script" workers "$scheduler_file" &
nodes=$!

timeout --kill-after=2m "$stop_after" \
    geodl-dask detect-change "$FROM" "$TO" "$OUT" "$MODEL" "${options[@]}" --cluster "$scheduler_file" --resume &
client=$!

status=0
wait -n "$client" "$nodes" || status=$?
if kill -0 "$client" 2>/dev/null; then
    echo "All workers have ended, and their messages above say why." >&2
    exit 1
fi
rounds=$((${ROUNDS:-100} - 1))    # how many jobs may follow
if [[ $status =~ ^(124|137)$ ]] && [ "$rounds" -gt 0 ]; then # 124: its time was over; 137: and it hung
    qsub -v "FROM=$FROM,TO=$TO,OUT=$OUT,MODEL=$MODEL,SCRIPT=$script,ROUNDS=$rounds" "$script"
fi
exit "$status"

#!/usr/bin/env bash
# One machine with one or several GPUs and no queue: geodl-dask starts a worker for each GPU by itself.
#
#     cluster/single-node-gpus.sh before.tif after.tif change.zarr model.dlpk --arguments "padding 64"
#
# takes what `geodl-dask detect-change` takes. A run that fails is gone on with, three times; start this again, such as
# by `@reboot` in a crontab, after the machine was taken away. Under Slurm or PBS take their scripts.
set -euo pipefail

for try in 1 2 3; do
    status=0
    geodl-dask detect-change "$@" --resume || status=$?
    # 0: done. 2: asked wrongly. Above 128: somebody stopped it. Else it failed, and another try may do.
    if [ "$status" -ne 1 ]; then exit "$status"; fi
    echo "Try $try failed." >&2
    sleep "${PAUSE_S:-30}"
done
exit "$status"

"""Change detection on a Dask Gateway: what the command does, from a notebook or script beside the gateway.

`pip install dask-gateway`; where it is and who you are stands in its configuration (`~/.config/dask/gateway.yaml`), or
is said as `Gateway("https://...", auth=...)`. Rasters, model and output are where the workers see them too.
"""

import sys

from dask_gateway import Gateway

import geodl_dask as gd


def main(before: str, after: str, out: str, model: str) -> None:
    """Detect change on as many workers as the work needs. Started again after an interruption, it goes on."""
    # What may be asked for is settled by whoever runs the gateway: print(gateway.cluster_options())
    with Gateway() as gateway, gateway.new_cluster(shutdown_on_close=True) as cluster:
        cluster.adapt(minimum=1, maximum=16)
        with cluster.get_client():  # active: the writers use it as it is
            change = gd.detect_change(before, after, model, arguments={"padding": 64})
            written = gd.write_zarr(change, out, resume=True)
    print(f"{written.path}: {written.computed_blocks} blocks computed")


if __name__ == "__main__":
    main(*sys.argv[1:])

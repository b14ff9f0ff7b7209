"""A client with workers in this process, as one that is asked for none has it."""

import asyncio
import gc

from geodl_dask.dispatch import _own_client


def test_a_timeout_that_nobody_waits_for_is_not_reported(caplog):
    async def leave(error):
        asyncio.get_running_loop().create_future().set_exception(error)

    with _own_client() as client:
        client.sync(leave, TimeoutError("Timeout"))  # as a stream of distributed's may, when it is closed
        client.sync(leave, OSError("cut"))
        gc.collect()
    reported = [record.exc_info[1] for record in caplog.records if record.name == "asyncio"]
    assert [str(error) for error in reported] == ["cut"]

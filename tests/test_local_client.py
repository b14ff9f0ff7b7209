"""A client with workers in this process, as one that is asked for none has it."""

import asyncio
import gc

from geodl_dask.dispatch import _own_client


def raise_it(error):
    raise error


def test_a_timeout_that_nobody_waits_for_is_not_reported(caplog):
    async def leave(error):
        asyncio.get_running_loop().create_future().set_exception(error)

    async def fail_in_a_callback(error):
        asyncio.get_running_loop().call_soon(raise_it, error)

    gc.collect()  # what earlier tests have left is reported now
    caplog.clear()
    with _own_client() as client:
        client.sync(leave, TimeoutError("Timeout"))  # as a stream of distributed's may, when it is closed
        client.sync(leave, OSError("cut"))
        client.sync(fail_in_a_callback, TimeoutError("too late"))
        gc.collect()
    reported = [record.exc_info[1] for record in caplog.records if record.name == "asyncio"]
    assert sorted(str(error) for error in reported) == ["cut", "too late"]

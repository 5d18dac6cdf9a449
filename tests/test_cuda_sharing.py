"""Device buffers that other libraries take over, through the real binding, on a stand-in for the driver: each
scenario in a process of its own.
"""

from __future__ import annotations

import pytest

from streams import needs_fake_driver, with_driver

pytestmark = needs_fake_driver

CONSUMER = """
import numpy as np
from kernels import Kernels

api = ctypes.pythonapi
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]

class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("offset", ctypes.c_uint64)]
class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]
class Versioned(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32 * 2), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
                ("flags", ctypes.c_uint64), ("tensor", Tensor)]

def consume(capsule, structure, name, used):
    address = api.PyCapsule_GetPointer(capsule, name)
    managed = structure.from_address(address)
    tensor = managed.tensor
    facts = (list(tensor.device), [tensor.shape[i] for i in range(tensor.ndim)],
             [tensor.strides[i] for i in range(tensor.ndim)], (tensor.code, tensor.bits, tensor.lanes))
    data = ctypes.string_at(tensor.data, 24)
    api.PyCapsule_SetName(capsule, used)
    return facts, data, lambda: ctypes.CFUNCTYPE(None, ctypes.c_void_p)(managed.deleter)(address)
"""


def test_buffers_are_taken_over_by_other_libraries_in_the_order_of_their_streams():
    with_driver(
        f"""
{CONSUMER}
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as consumer:
        array = np.arange(6, dtype="<f4").reshape(2, 3)
        buffer = await stream.copy_to_device(array)
        expected = ([2, 0], [2, 3], [3, 1], (2, 32, 1))
        capsule = buffer.__dlpack__(stream=consumer.handle)
        facts, data, delete = consume(capsule, Managed, b"dltensor", b"used_dltensor")
        assert (facts, data) == (expected, array.tobytes())
        newer = buffer.__dlpack__(stream=-1, max_version=(1, 1))
        names = b"dltensor_versioned", b"used_dltensor_versioned"
        facts, data, delete_newer = consume(newer, Versioned, *names)
        assert (facts, data) == (expected, array.tobytes())
        interface = buffer.__cuda_array_interface__
        assert interface["data"] == (buffer.address, False) and interface["typestr"] == "<f4"
        assert (interface["version"], interface["shape"], interface["stream"]) == (3, (2, 3), None)
        # The memory stays until both consumers are done; capsules that nobody takes keep nothing.
        buffer.__dlpack__()
        del buffer
        gc.collect()
        assert pool.stats().device_bytes == 24
        delete()
        delete_newer()
        await eventually(lambda: pool.stats().device_bytes == 0)

        # What is not there yet is waited for by the consumer's stream, not by this thread.
        kernels = Kernels()
        gate = kernels.gate(stream)
        buffer = stream.allocate(1000)
        assert buffer.__cuda_array_interface__["stream"] == stream.handle
        buffer.__dlpack__(stream=-1)
        assert consumer.query()
        buffer.__dlpack__(stream=consumer.handle)
        assert not consumer.query()
        raises(ValueError, lambda: buffer.__dlpack__(stream=0))
        raises(BufferError, lambda: buffer.__dlpack__(dl_device=(1, 0)))
        raises(BufferError, lambda: buffer.__dlpack__(copy=True))
        gate.open()
        await consumer
        del buffer
run(main)
"""
    )


# The stream that a consumer names when it takes a buffer over, and the one that it uses it on.
CONSUMERS = {
    "the default stream": ("None", "1"),
    "the default stream by its number": ("1", "1"),
    "the thread's": ("2", "2"),
    "one of the pool": ("used.handle", "used"),
    "one of another pool": ("apart.handle", "apart"),
    "its own, which waits for the default stream": ("theirs.value", "theirs.value"),
    "its own, which waits for no other": ("apart_from_all.value", "apart_from_all.value"),
}


@pytest.mark.parametrize("case", CONSUMERS)
def test_memory_that_a_consumer_lets_go_of_is_kept_until_its_stream_has_used_it(case):
    told, runs = CONSUMERS[case]
    with_driver(
        f"""
{CONSUMER}
async def main():
    async with (cuda.StreamPool() as pool, cuda.StreamPool() as away, pool.lease() as stream,
                pool.lease() as other, pool.lease() as used, away.lease() as apart):
        kernels, theirs, apart_from_all = Kernels(), ctypes.c_void_p(), ctypes.c_void_p()
        kernels.check(kernels.driver.cuStreamCreate(ctypes.byref(theirs), 0))
        kernels.check(kernels.driver.cuStreamCreate(ctypes.byref(apart_from_all), 1))
        buffer, small = await stream.copy_to_device(b"x" * 24), await other.copy_to_device(b"y")
        _, _, delete = consume(buffer.__dlpack__(stream={told}), Managed, b"dltensor", b"used_dltensor")
        gate = kernels.gate({runs})
        delete()
        del buffer
        # What is let go of later does not wait for it.
        del small
        await eventually(lambda: pool.stats().device_bytes <= 24)
        await asyncio.sleep(0.02)
        assert pool.stats().device_bytes == 24
        gate.open()
        await eventually(lambda: pool.stats().device_bytes == 0)
    assert pool.stats().errors == 0
run(main)
"""
    )


def test_a_consumers_stream_that_is_gone_is_not_asked_about_but_what_it_still_runs_is_waited_for():
    with_driver(
        f"""
{CONSUMER}
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as other:
        kernels, theirs = Kernels(), ctypes.c_void_p()
        kernels.check(kernels.driver.cuStreamCreate(ctypes.byref(theirs), 1))
        buffer, small = await stream.copy_to_device(b"x" * 24), await other.copy_to_device(b"y")
        taken = buffer.__dlpack__(stream=theirs.value)
        _, _, delete = consume(taken, Managed, b"dltensor", b"used_dltensor")
        gate = kernels.gate(theirs.value)
        kernels.check(kernels.driver.cuStreamDestroy_v2(theirs))
        delete()
        del buffer, small
        await eventually(lambda: pool.stats().device_bytes <= 24)
        await asyncio.sleep(0.02)
        assert pool.stats().device_bytes == 24
        gate.open()
        await eventually(lambda: pool.stats().device_bytes == 0)
        assert pool.stats().errors == 0 and pool.healthy
run(main)
"""
    )


def test_memory_is_kept_where_the_driver_does_not_say_when_it_is_used_no_more():
    with_driver(
        f"""
{CONSUMER}
async def main():
    async with cuda.StreamPool() as pool, pool.lease() as stream, pool.lease() as other:
        kept = await stream.copy_to_device(b"x" * 24)
        _, _, delete = consume(kept.__dlpack__(stream=2), Managed, b"dltensor", b"used_dltensor")
        delete()
        del kept
        later = await stream.copy_to_device(b"y" * 8)
        _, _, delete = consume(later.__dlpack__(stream=2), Managed, b"dltensor", b"used_dltensor")
        delete()
        del later
        # One thread lets go of both, in this order.
        await eventually(lambda: pool.stats().device_bytes == 24)
        assert pool.healthy
run(main)
""",
        FAIL="cuCtxSynchronize:1:801",
    )

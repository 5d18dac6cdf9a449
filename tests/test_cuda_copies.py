"""Copies and memory on a simulated device: every byte of every kind of buffer, cancelled copies, budgets."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import headrace as hr
import numpy as np
import pytest

from streams import pooled, stopped
from support import eventually

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("size", [1, 4096, 65_536, 65_537, 3_000_001])
async def test_copies_bring_every_byte_of_every_kind_of_buffer(size):
    data = np.random.default_rng(size).bytes(size)
    array = np.frombuffer(data, "u1").copy()
    async with pooled() as pool, pool.lease() as stream:
        for source in (data, bytearray(data), memoryview(data), array):
            buffer = await stream.copy_to_device(source)
            assert (buffer.nbytes, len(buffer), buffer.shape) == (size, size, (size,))
            back = await stream.copy_to_host(buffer)
            assert bytes(back) == data and back.readonly
            out = bytearray(size)
            assert await stream.copy_to_host(buffer, out) is out and out == data
            del back, buffer
        stats = pool.stats()
        assert (stats.bytes_to_device, stats.bytes_to_host) == (4 * size, 8 * size)


@pytest.mark.parametrize("dtype", ["i1", "u2", "<i4", "i8", "f2", "f4", "f8", "?", "c8"])
async def test_arrays_keep_their_type_and_shape(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    async with pooled() as pool, pool.lease() as stream:
        buffer = await stream.copy_to_device(array)
        assert (buffer.shape, buffer.typestr) == ((2, 3, 4), array.dtype.str)
        out = np.empty_like(array)
        await stream.copy_to_host(buffer, out)
        assert np.array_equal(out, array)
        view = np.asarray(await stream.copy_to_host(buffer))
        if dtype not in ("f2", "c8"):
            assert view.dtype == array.dtype and np.array_equal(view, array)
        assert view.tobytes() == array.tobytes()
        del view, buffer


async def test_what_cannot_be_copied_is_refused_before_anything_is_done():
    async with pooled() as pool, pool.lease() as stream:
        with pytest.raises(BufferError, match="contiguous"):
            stream.copy_to_device(np.zeros((4, 4))[:, 1])
        with pytest.raises(TypeError):
            stream.copy_to_device("text")
        with pytest.raises(ValueError, match="zero bytes"):
            stream.copy_to_device(b"")
        buffer = await stream.copy_to_device(b"four")
        with pytest.raises(BufferError, match="read-only"):
            stream.copy_to_host(buffer, b"four")
        with pytest.raises(ValueError, match="3 bytes"):
            stream.copy_to_host(buffer, bytearray(3))
        for share in ("__dlpack__", "__dlpack_device__", "__cuda_array_interface__"):
            with pytest.raises(BufferError, match="simulated"):
                getattr(buffer, share)()
        del buffer


async def test_a_copy_that_is_cancelled_holds_its_buffer_until_it_was_read_and_writes_to_none():
    class Owner(bytearray):
        pass

    async with pooled() as pool, pool.lease() as stream:
        with stopped(pool):
            stream.spin(100)
            source = Owner(b"\1" * 1_000_000)
            alive = weakref.ref(source)
            copy = asyncio.ensure_future(stream.copy_to_device(source))
            del source
            await asyncio.sleep(0)
            copy.cancel()
            await asyncio.wait([copy])
        await eventually(lambda: alive() is None)
        buffer = await stream.copy_to_device(b"\2" * 1000)
        with stopped(pool):
            stream.spin(100)
            out = bytearray(1000)
            back = asyncio.ensure_future(stream.copy_to_host(buffer, out))
            await asyncio.sleep(0)
            back.cancel()
            await asyncio.wait([back])
        await stream
        assert out == bytes(1000)
        out += b"it is nobody's any more"
        del buffer


@pytest.mark.parametrize("size", [1000, 200_000])
async def test_a_buffer_is_free_to_change_its_length_once_its_copy_was_awaited(size):
    async with pooled() as pool, pool.lease() as stream:
        for late in (False, True):
            source, out = bytearray(b"x" * size), bytearray(size)
            copied = pool.stats().bytes_to_device
            copy = stream.copy_to_device(source)
            # One that has ended before anybody waits for it is had without a turn of the loop.
            while late and (pool.stats().bytes_to_device == copied or not stream.query()):
                time.sleep(0.001)
            buffer = await copy
            source.clear()
            back = await stream.copy_to_host(buffer, out)
            assert back is out and out == b"x" * size
            out.clear()
            del buffer


async def test_pinned_memory_is_used_again():
    async with pooled() as pool, pool.lease() as stream:
        for _ in range(20):
            buffer = await stream.copy_to_device(bytes(100_000))
            await stream.copy_to_host(buffer, bytearray(100_000))
            del buffer
        assert pool.stats().pinned_bytes <= 4 * 131_072


async def test_a_stream_has_its_budget_and_no_more():
    async with pooled(budget_mb=1) as pool, pool.lease() as stream:
        buffer = stream.allocate(800_000, shape=(2, 100_000), typestr="<f4")
        assert (buffer.shape, buffer.nbytes) == ((2, 100_000), 800_000)
        with pytest.raises(hr.OutOfBudget) as refused:
            stream.allocate(300_000)
        error = refused.value
        assert (error.requested, error.current, error.limit) == (300_000, 800_000, 1 << 20)
        assert error.remaining == (1 << 20) - 800_000
        with pytest.raises(hr.OutOfBudget):
            await stream.copy_to_device(bytes(300_000))
        async with pool.lease() as other:
            fits = other.allocate(800_000)
            fits.wait_on(stream)
            fits.record_use(stream)
            del fits
        del buffer
        await eventually(lambda: pool.stats().device_bytes == 0)
        del refused, error
        with pytest.raises(ValueError, match="typestr"):
            stream.allocate(4, typestr="<x9")
        with pytest.raises(ValueError, match="not 4 bytes"):
            stream.allocate(4, shape=(2,), typestr="<f4")
        gc.collect()

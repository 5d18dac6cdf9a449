"""Kernels for tests, launched through the driver's C interface as any other library would: on the stand-in
for the driver, and on a GPU. ``headrace_gate`` runs until the host opens it; ``headrace_trap`` fails.
"""

from __future__ import annotations

import ctypes

PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry headrace_gate(.param .u64 word)
{
    .reg .pred %shut;
    .reg .u64 %address;
    .reg .u32 %value;
    ld.param.u64 %address, [word];
again:
    ld.volatile.u32 %value, [%address];
    setp.eq.u32 %shut, %value, 0;
    @%shut bra again;
    ret;
}
.visible .entry headrace_trap()
{
    trap;
    ret;
}
"""


class Kernels:
    """Kernels of a device. The first stream must have been made before."""

    def __init__(self, device: int = 0) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.device = device
        self.context = ctypes.c_void_p()
        self.check(self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(self.context), device))
        self.module = ctypes.c_void_p()
        self.here()
        self.check(self.driver.cuModuleLoadData(ctypes.byref(self.module), PTX))

    def check(self, code: int) -> None:
        assert code == 0, code

    def here(self) -> None:
        """Makes the context current on this thread."""
        self.check(self.driver.cuCtxSetCurrent(self.context))

    def launch(self, name: str, stream: int, parameter: int = 0) -> None:
        self.here()
        kernel, value = ctypes.c_void_p(), ctypes.c_uint64(parameter)
        self.check(self.driver.cuModuleGetFunction(ctypes.byref(kernel), self.module, name.encode()))
        values = (ctypes.c_void_p * 1)(ctypes.addressof(value))
        ones = [ctypes.c_uint(1)] * 6
        shared, handle = ctypes.c_uint(0), ctypes.c_void_p(stream)
        self.check(self.driver.cuLaunchKernel(kernel, *ones, shared, handle, values, None))

    def trap(self, stream: object) -> None:
        """The device is lost when the stream comes to it."""
        self.launch("headrace_trap", int(stream))  # type: ignore[call-overload]

    def gate(self, stream: object) -> Gate:
        """The stream stands still until the gate is opened."""
        gate = Gate(self)
        self.launch("headrace_gate", int(stream), gate.word.value or 0)  # type: ignore[call-overload]
        return gate


class Gate:
    """A word of pinned memory that a kernel waits for."""

    def __init__(self, kernels: Kernels) -> None:
        self.word = ctypes.c_void_p()
        kernels.check(kernels.driver.cuMemHostAlloc(ctypes.byref(self.word), ctypes.c_size_t(4), 0))
        self.value = ctypes.c_uint32.from_address(self.word.value or 0)
        self.value.value = 0

    def open(self) -> None:
        self.value.value = 1

"""The driver's C interface, as far as measuring needs it: its own blocking wait, and a kernel that takes a
known time and fills the whole device, so that two of them run one after the other as real ones do.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from headrace import cuda

ROOT = Path(__file__).resolve().parents[2]
PTX = (ROOT / "rust" / "cuda" / "src" / "spin.ptx").read_bytes()

_THREADS = 1024
_MULTIPROCESSORS = 16
_THREADS_OF_MULTIPROCESSOR = 39


class Driver:
    """The driver, with the context of a device."""

    def __init__(self, device: int = 0) -> None:
        cuda.StreamPool(device)
        self._library = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._check("cuCtxSetCurrent", self._context)
        module, self._kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("cuModuleLoadData", ctypes.byref(module), PTX)
        self._check("cuModuleGetFunction", ctypes.byref(self._kernel), module, b"headrace_spin")
        resident = self._attribute(_THREADS_OF_MULTIPROCESSOR, device) // _THREADS
        self._blocks = max(1, self._attribute(_MULTIPROCESSORS, device) * resident)

    @property
    def version(self) -> str:
        """The CUDA that the driver speaks."""
        number = ctypes.c_int()
        self._check("cuDriverGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def synchronize(self, handle: int) -> None:
        """Block in the driver until a stream is done; the driver spins."""
        self._check("cuCtxSetCurrent", self._context)
        self._check("cuStreamSynchronize", ctypes.c_void_p(handle))

    def spin(self, handle: int, microseconds: int) -> None:
        """Put the kernel into a stream."""
        duration = ctypes.c_uint64(microseconds * 1000)
        values = (ctypes.c_void_p * 1)(ctypes.addressof(duration))
        one = ctypes.c_uint(1)
        shape = [ctypes.c_uint(self._blocks), one, one, ctypes.c_uint(_THREADS), one, one, ctypes.c_uint(0)]
        self._check("cuLaunchKernel", self._kernel, *shape, ctypes.c_void_p(handle), values, None)

    def _attribute(self, number: int, device: int) -> int:
        value = ctypes.c_int()
        self._check("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def _check(self, function: str, *arguments: object) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            raise RuntimeError(f"{function} failed with {code}")

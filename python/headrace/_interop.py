"""Streams as objects of other libraries, which are imported only here."""

from __future__ import annotations

import importlib
from typing import Any


def torch_stream(handle: int, device: int) -> Any:
    """The stream as one of PyTorch's, to be used with ``torch.cuda.stream``."""
    torch = _library("torch", "stream.torch()")
    # ExternalStream takes 0 for a stream of its own choice.
    if handle == 0:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(handle, device=torch.device("cuda", device))


def cupy_stream(handle: int, device: int) -> Any:
    """The stream as one of CuPy's, to be used with ``with``."""
    cupy = _library("cupy", "stream.cupy()")
    return cupy.cuda.ExternalStream(handle, device)


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{what} needs the package {name}, which is not installed", name=name) from error

"""CUDA C++ kernels: compiled by NVRTC when they are first needed, and kept on disk.

Triton writes most kernels of this room. Those that need what it cannot say, warps that exchange
numbers and blocks that wait for each other, stand in the `.cu` files beside this one. cuda-core,
NVIDIA's own binding, compiles and launches them. The sources know the sizes of the public model
alone; whatever has other sizes runs by Triton.
"""

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from cuda.core import Kernel, ObjectCode

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
CACHE_VARIABLE = "PERSONAPLEX_KERNEL_CACHE"  # a folder; the container's is on the volume
DEFAULT_CACHE = Path("~/.cache/personaplex/kernels")


def compile_source(name: str, arch: str, logs: object = None) -> "ObjectCode":
    """`name`.cu as machine code of an architecture such as sm_90; needs no GPU.

    logs: anything with `write`, for the compiler's words on registers and memory; such a call
    compiles even what is kept on disk.
    """
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import FileStreamProgramCache

    text = (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
    options = ProgramOptions(name=name, arch=arch, std="c++17", ptxas_options="-v")
    program = Program(text, "c++", options)
    if logs is not None:
        return program.compile("cubin", logs=logs)
    folder = Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()
    try:
        with FileStreamProgramCache(folder) as kept:
            return program.compile("cubin", cache=kept)
    except OSError as error:  # a start takes some seconds longer, and goes on
        logger.warning("compiled kernels cannot be kept in %s: %s", folder, error)
        return program.compile("cubin")


@cache
def load(source: str, name: str, device: int, shared: int) -> "Kernel":
    """A kernel of a source, ready to be launched on this device with so much shared memory."""
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(device)
    kernel = compile_source(source, f"sm_{major}{minor}").get_kernel(name)
    if shared:  # above 48 KiB it must be asked for; cuda-core only reads this attribute
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        result, *_ = driver.cuKernelSetAttribute(attribute, shared, kernel.handle, device)
        if result != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{source}.cu: {name} cannot have {shared} bytes: {result.name}")
    return kernel


def launch(
    source: str,
    name: str,
    grid: tuple[int, int, int],
    threads: int,
    *arguments: Tensor | int | float,
    shared: int = 0,
    cooperative: bool = False,
) -> None:
    """Launch on PyTorch's current stream; a graph that records it keeps it.

    arguments: tensors go as addresses, float as float32, int as int64: the source's types.
    shared: bytes of dynamic shared memory. cooperative: all blocks are resident, or it is an error.
    """
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as launch_kernel

    stream = torch.cuda.current_stream()
    kernel = load(source, name, stream.device.index, shared)
    given = [
        a.data_ptr() if isinstance(a, Tensor) else np.float32(a) if isinstance(a, float) else a
        for a in arguments
    ]
    config = LaunchConfig(grid=grid, block=threads, shmem_size=shared, is_cooperative=cooperative)
    launch_kernel(Stream.from_handle(stream.cuda_stream), config, kernel, *given)

"""What the machine has, by the standard library alone: set-up runs before any package is there."""

import ctypes

CUDA_SUCCESS = 0


def has_cuda() -> bool:
    """Whether the NVIDIA driver is here and sees a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != CUDA_SUCCESS:
        return False
    return driver.cuDeviceGetCount(ctypes.byref(count)) == CUDA_SUCCESS and count.value > 0

"""The platform of the null device, as vLLM 0.18 asks for it."""

from typing import Any

import torch
from vllm.platforms.interface import Platform, PlatformEnum

MEMORY_BYTES = 80 << 30


class NullPlatform(Platform):
    """No kernels, no streams, plenty of memory."""

    _enum = PlatformEnum.OOT
    device_name = device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """All that models come in."""
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """Of any device."""
        return f"null {device_id}"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Of any device, bytes."""
        del device_id  # all are the same
        return MEMORY_BYTES

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """There is nowhere to copy to."""
        return False

    @classmethod
    def support_hybrid_kv_cache(cls) -> bool:
        """Caches are never touched."""
        return True

    @classmethod
    def import_kernels(cls) -> None:
        """There are none."""

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        """Every one is as good."""

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: Any) -> None:
        """No backend prefers any."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Name the worker."""
        vllm_config.parallel_config.worker_cls = "null_device.worker.NullWorker"

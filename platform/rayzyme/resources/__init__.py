"""What the machine has to give: GPUs and memory by leases, a cache in two levels, and what of it all may be used."""

from rayzyme.resources.cache import TwoLevelCache
from rayzyme.resources.devices import FakeGPUs
from rayzyme.resources.gpu import GPUManager
from rayzyme.resources.memory import MemoryManager, available_memory, get_memory_manager

__all__ = ["FakeGPUs", "GPUManager", "MemoryManager", "TwoLevelCache", "available_memory", "get_memory_manager"]

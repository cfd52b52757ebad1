"""Bulk copies under the names that Triton gave them: renamed in 3.9, where the old store is gone."""

from triton.experimental.gluon.language.nvidia.hopper import tma

# (descriptor, coordinates, barrier, destination): completes the barrier's bytes
copy_in = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
# (descriptor, coordinates, source): what lies past the tensor's end is not written
copy_out = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
# store_wait(0): the copies that this thread sent out have read their shared memory
store_wait = tma.store_wait

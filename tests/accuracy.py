"""The only tolerance rule, under the name by which the tests know it; it lies where benchmarks find it too."""

from vit_fast.accuracy import Distance, assert_as_accurate, distances

__all__ = ["Distance", "assert_as_accurate", "distances"]

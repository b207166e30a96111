"""Which choice is best: placement, batching, bit widths, accelerators."""

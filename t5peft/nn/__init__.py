"""Building blocks of a T5 step: attention, the loss, and kernels."""

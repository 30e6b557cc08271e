"""The shared core: targets, masks, objectives, optimisation, training. Knows tensors and grids; no images or videos."""

"""Processes and devices: who takes part, how they are started, how gradients are shared."""

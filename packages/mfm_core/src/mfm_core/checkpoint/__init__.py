"""Checkpoints: files (`io`), continuing a run (`resume`), starting from weights (`init_from`), layouts (`formats`)."""

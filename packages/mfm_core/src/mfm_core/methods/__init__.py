"""Pre-training methods that images and video share, and the registries that a run's parts are chosen from."""

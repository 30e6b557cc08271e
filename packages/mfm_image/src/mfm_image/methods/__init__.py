"""The pre-training methods, a file each: what hides, what predicts, from what, with which loss."""

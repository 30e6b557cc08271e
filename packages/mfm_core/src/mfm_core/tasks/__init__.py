"""What the training loop trains: pre-training, fine-tuning and probing, for whatever data a modality brings."""

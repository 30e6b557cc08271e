"""What a run does with images: pre-training, fine-tuning, pictures."""

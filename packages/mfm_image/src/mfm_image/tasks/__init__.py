"""What can be done with images: pre-training, fine-tuning, linear probing, k-NN, pictures."""

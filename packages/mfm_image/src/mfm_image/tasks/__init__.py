"""What can be trained on images: pre-training and fine-tuning."""

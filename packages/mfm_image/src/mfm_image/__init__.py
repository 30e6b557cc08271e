"""Images: ViT backbones, image folders and augmentation, pre-training and fine-tuning tasks."""

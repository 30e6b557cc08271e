"""The encoders of video runs, a file each, with the builders that read the configuration."""

"""Order of samples, batches and loading: the same for images and clips, for any number of workers and ranks."""

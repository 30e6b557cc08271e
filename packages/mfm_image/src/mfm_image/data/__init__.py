"""Image folders: listing, decoding, augmentation, the data set, and a doctor that checks a folder."""

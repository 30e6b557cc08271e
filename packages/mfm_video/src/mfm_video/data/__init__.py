"""From lists of video files to samples."""

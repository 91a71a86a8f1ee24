"""Worker process."""

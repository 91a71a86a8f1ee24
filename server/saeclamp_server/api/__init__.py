"""HTTP, in the API process."""

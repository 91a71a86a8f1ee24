"""What hours of abuse do to a server: fuzz, kill -9, clients that leave, and saturation. Run by hand."""

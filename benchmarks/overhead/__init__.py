"""What steering costs."""

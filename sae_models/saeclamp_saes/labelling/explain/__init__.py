"""Labels that another language model writes."""

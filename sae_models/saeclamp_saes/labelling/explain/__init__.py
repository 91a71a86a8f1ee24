"""Explanations of features that another language model writes."""

"""Requests are refused that ask for steering where, or in words in which, nobody would read it."""

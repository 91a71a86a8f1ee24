"""The playground: a page in the browser that steers, out of package data; see README.md for how it is made."""

from saeclamp_server.playground.pages import PATHS, router

__all__ = ["PATHS", "router"]

"""The installed version."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("saeclamp")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"

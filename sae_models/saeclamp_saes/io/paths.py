"""Folders of the user that saeclamp reads and writes, as the system names them, or as its variables do."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

NAME = "saeclamp"


def data_folder() -> Path:
    """Folder of what users make and nothing can make again: $XDG_DATA_HOME/saeclamp, or ~/.local/share/saeclamp."""
    return platformdirs.user_data_path(NAME, appauthor=False).absolute()


def home_folder() -> Path:
    """Folder of the user's library of SAEs: $SAECLAMP_HOME, or `data_folder()`."""
    own = os.environ.get("SAECLAMP_HOME")
    return Path(own).expanduser().absolute() if own else data_folder()


def cache_folder() -> Path:
    """Folder of what can be made again: $SAECLAMP_CACHE, $XDG_CACHE_HOME/saeclamp, or ~/.cache/saeclamp."""
    own = os.environ.get("SAECLAMP_CACHE")
    return Path(own).expanduser().absolute() if own else platformdirs.user_cache_path(NAME, appauthor=False).absolute()


def state_folder() -> Path:
    """Folder of what a program remembers of its use: $XDG_STATE_HOME/saeclamp, or ~/.local/state/saeclamp."""
    return platformdirs.user_state_path(NAME, appauthor=False).absolute()

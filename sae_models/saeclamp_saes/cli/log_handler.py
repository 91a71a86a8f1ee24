"""
Handler of a command line: what the loggers are told becomes lines `saeclamp: ...` on the terminal.

Messages for whoever runs a command go to two loggers, `saeclamp.saes` for this package and `saeclamp.server` for the server:
notes as INFO, what warns as WARNING, and both are printed alike. Used as libraries they print nothing. Tracebacks and the
like, which are for the log file of a server, go to loggers that are named after their modules, and have no handler here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

ROOT_LOGGER = "saeclamp"
SAES_LOGGER = "saeclamp.saes"
SERVER_LOGGER = "saeclamp.server"
LOGGERS = (ROOT_LOGGER, SAES_LOGGER, SERVER_LOGGER)


class LineHandler(logging.Handler):
    """Handler that prints each message in a line, at once. Errors of the stream are raised, as `print` does."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """
        Make a handler.

        stream: None for the stderr of the moment, which a progress bar replaces while it is drawn
        """
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        print(f"saeclamp: {record.getMessage()}", file=self._stream or sys.stderr, flush=True)


class _EnabledLogger(logging.Logger):
    """
    Logger that stays enabled.

    vLLM and uvicorn configure logging several times while a server starts, by files that users write, and `dictConfig`
    disables all loggers that such a file does not name, unless it says otherwise.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "disabled":
            super().__setattr__(name, value)


def set_up_log(name: str = SERVER_LOGGER, handler: LineHandler | None = None) -> None:
    """
    Print the messages of a logger and of those below it, by one handler, and leave nothing to the handlers of others.

    name:    ROOT_LOGGER for both; most commands leave out what the SAE library says of downloads
    handler: takes the place of any that was set up before; None for one that prints on stderr
    """
    for logger in map(logging.getLogger, LOGGERS):
        logger.disabled = False
        logger.__class__ = _EnabledLogger
        for old in [old for old in logger.handlers if isinstance(old, LineHandler)]:
            logger.removeHandler(old)
    top = logging.getLogger(ROOT_LOGGER)
    top.setLevel(logging.INFO)
    top.propagate = False
    logging.getLogger(name).addHandler(handler or LineHandler())

"""What our loggers are told, kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from saeclamp_saes.cli.log_handler import LOGGERS, ROOT_LOGGER


class _ListHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def kept_messages() -> Iterator[list[str]]:
    """The messages of all our loggers, notes and warnings, from here to the end of the block."""
    handler, top = _ListHandler(), logging.getLogger(ROOT_LOGGER)
    with unchanged_loggers():
        top.setLevel(logging.INFO)
        top.addHandler(handler)
        yield handler.messages


@contextmanager
def unchanged_loggers() -> Iterator[None]:
    """A block after which our loggers are what they were before it."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [
        (logger.__class__, logger.level, logger.propagate, logger.disabled, [*logger.handlers]) for logger in loggers
    ]
    try:
        yield
    finally:
        for logger, (kind, level, propagate, disabled, handlers) in zip(loggers, before, strict=True):
            logger.__class__ = kind
            logger.setLevel(level)
            logger.propagate, logger.disabled, logger.handlers = propagate, disabled, handlers

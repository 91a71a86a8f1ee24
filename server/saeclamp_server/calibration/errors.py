"""Errors of a calibration. Every message is one sentence for the user."""

from __future__ import annotations

from saeclamp_saes.errors import UserError


class CalibrationError(UserError):
    """A feature cannot be calibrated on this server, or with these settings."""

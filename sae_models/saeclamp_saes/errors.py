"""
Errors of SAEs: files, library, measuring, training, labels. Every message is one sentence for the user.

    UserError                    also of what starts a server or asks one
    SAEError
    ├── CheckpointError          the files cannot be read exactly
    │   ├── PickledError         they are a pickle, which is never loaded here
    │   └── OptionError          an option is unknown, malformed or has no meaning for them
    ├── VerificationError        it cannot be measured on this model or text
    ├── TrainingError            it cannot be trained with these data or settings
    ├── LabelError               labels cannot be made, or are of other weights
    └── SAELibraryError          no such SAE
"""

from __future__ import annotations


class UserError(Exception):
    """A command cannot do what was asked for; the message is one sentence for the user."""


class SAEError(UserError, ValueError):
    """An SAE cannot be used."""


class CheckpointError(SAEError):
    """The checkpoint cannot be read exactly."""


class PickledError(CheckpointError):
    """The checkpoint is a pickle, which can run code when it is loaded, so it must be converted first."""


class OptionError(CheckpointError):
    """An option is unknown, malformed or has no meaning for the checkpoint."""


class VerificationError(SAEError):
    """An SAE cannot be measured on this model, or with this text; whether it fits is not known."""


class TrainingError(SAEError):
    """An SAE cannot be trained with these data or settings."""


class LabelError(SAEError):
    """Labels cannot be made, or cannot be used with this SAE."""


class SAELibraryError(SAEError):
    """There is no such SAE, or its files cannot be used."""

"""The neutral prompts: everyday questions and openings, about nothing that a feature is likely to be about."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from saeclamp_server.calibration.errors import CalibrationError

PACKAGED = Path(__file__).with_name("prompts.txt")


@dataclass(frozen=True)
class Prompts:
    """Prompts that every strength is tried on."""

    texts: tuple[str, ...]
    origin: str
    """Origin: 'packaged', or the file's name."""

    @property
    def sha256(self) -> str:
        """Hex digest of the prompts, in order."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def read_prompts(path: Path | None) -> Prompts:
    """
    Read one prompt a line, in UTF-8; empty lines are passed over.

    path: None for the packaged ones
    Raises CalibrationError.
    """
    try:
        lines = (path or PACKAGED).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise CalibrationError(f"{path} cannot be read: {reason}.") from exc
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise CalibrationError(f"{path} holds no prompt: write one a line.")
    return Prompts(texts, path.name if path else "packaged")

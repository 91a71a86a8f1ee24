"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# how long a case takes says how busy the machine is
settings.register_profile("saeclamp", deadline=None)
settings.load_profile("saeclamp")

"""
What a request can be refused for.

    RequestError                  any refusal: status, message, JSON path, code
    ├── InvalidSteeringError      400  the `steering` object is malformed, or asks for what cannot be applied
    ├── UnknownSAEError           400  no SAE of that name is loaded
    ├── UnknownFeatureError       400  the SAE has no feature of that name
    ├── FeatureOutOfRangeError    400  the index is outside the SAE
    ├── DoseTooLargeError         400  the edits are longer than this server allows
    └── NotAppliedError           500  the engine did not steer a request that asked for it
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known word, or nothing when none is near or it is the very same."""
    by_lower = {name.lower(): name for name in known}
    nearest = get_close_matches(word.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[nearest[0]]!r}?" if nearest and by_lower[nearest[0]] != word else ""


class RequestError(Exception):
    """A refusal, in OpenAI's terms."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """JSON path of the offending value, such as `steering.interventions[0].feature`."""

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidSteeringError(RequestError):
    code = "invalid_steering"


class DoseTooLargeError(RequestError):
    code = "dose_too_large"

    def __init__(self, site: str, dose: float, max_dose: float, parts: Iterable[tuple[str, float]], param: str) -> None:
        shares = ", ".join(f"{feature} {share:.2f}" for feature, share in parts)
        super().__init__(
            f"At {site} this could move a token by {dose:.2f} times the stream's median length ({shares}); this server "
            f"allows {max_dose:g}.",
            param,
        )


class UnknownSAEError(RequestError):
    code = "unknown_sae"

    def __init__(self, name: str, loaded: Iterable[str], param: str) -> None:
        loaded = list(loaded)
        super().__init__(
            f"No SAE named {name!r} is loaded.{did_you_mean(name, loaded)} Loaded: {', '.join(loaded) or 'none'}.",
            param,
        )


class UnknownFeatureError(RequestError):
    code = "unknown_feature"

    def __init__(self, sae: str, name: str, named: Iterable[str], d_sae: int, param: str) -> None:
        named = list(named)
        super().__init__(
            f"SAE {sae!r} has no feature named {name!r}.{did_you_mean(name, named)} Named: {', '.join(named) or 'none'}; "
            f"or give an index from 0 to {d_sae - 1}.",
            param,
        )


class FeatureOutOfRangeError(RequestError):
    code = "feature_out_of_range"

    def __init__(self, sae: str, index: int, d_sae: int, param: str) -> None:
        super().__init__(f"SAE {sae!r} has features 0 to {d_sae - 1}; there is no {index}.", param)


class NotAppliedError(RequestError):
    status = 500
    type = "server_error"
    code = "steering_not_applied"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine could not apply the steering of this request: {reason}", "steering")

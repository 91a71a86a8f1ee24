"""
Refusals of requests.

    RequestError                  any refusal: status, message, JSON path, code
    ├── InvalidRequestError       400  the body or a parameter of one of our own endpoints is malformed
    │   └── BodyTooLargeError     413  it has more bytes than are read
    ├── UnauthorizedError         401  the server has a key, and the request does not carry it
    ├── InvalidSteeringError      400  the `steering` object is malformed, or asks for what cannot be applied
    │   └── ContradictionError    400  two interventions move one feature of one token
    ├── UnknownSAEError           400  no SAE of that name is loaded
    ├── UnknownFeatureError       400  the SAE has no feature of that name
    ├── FeatureOutOfRangeError    400  the index is outside the SAE
    ├── DoseTooLargeError         400  the dose is larger than this server allows
    ├── UnknownVectorError        400  no vector of that name is loaded; 404 where it is itself what was asked for
    ├── InvalidVectorError        400  the upload is no vector that could be used here
    │   └── VectorTooLargeError   413  it has more bytes than any vector
    ├── VectorExistsError         400  another vector has that name
    ├── VectorsFullError          400  its site holds as many vectors as it can
    ├── VectorNotKeptError        500  the database did not take it
    ├── VectorsUnavailableError   503  the database of vectors does not answer
    ├── UnknownVariantError       404  no variant of that name is kept
    ├── UnknownModelError         404  neither a model nor a variant has that name, but one has a near one
    ├── BareVariantError          404  a variant is named without its model
    ├── AliasTakenError           400  another variant or a model has that alias
    ├── VariantReadOnlyError      400  the feature book's variants cannot be changed or deleted
    ├── VariantChangedError       400  what a variant was created with is no longer what is served
    ├── VariantsUnavailableError  503  the database of variants does not answer
    ├── SearchUnavailableError    500  what is searched could not be read at the start
    ├── BusyError                 429  as many features are in use, and as many requests wait, as this server allows
    ├── StoppingError             503  the server is about to stop, and takes no more requests
    ├── EngineGoneError           503  the engine has died, and the server ends
    ├── NotAppliedError           500  the engine did not steer a request that asked for it
    └── ServerFailedError         500  something else went wrong when the answer had begun
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saeclamp.types.dose import dose_in_words
from saeclamp.types.refusals import did_you_mean, listed, shown


class RequestError(Exception):
    """A refusal, in OpenAI's terms."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"
    retry_after_s: int | None = None
    """Seconds after which it may be asked again."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        """JSON path of the offending value, such as `steering.interventions[0].feature`."""

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error envelope."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequestError(RequestError):
    pass


class BodyTooLargeError(InvalidRequestError):
    status = 413
    code = "body_too_large"


class UnauthorizedError(RequestError):
    status = 401
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__(
            "This server has an API key: send it as 'Authorization: Bearer KEY', which is what OpenAI's clients do with "
            "api_key, and saeclamp's with SAECLAMP_API_KEY.",
            None,
        )


class InvalidSteeringError(RequestError):
    code = "invalid_steering"


class ContradictionError(InvalidSteeringError):
    def __init__(self, first: str, does: str, param: str) -> None:
        super().__init__(f"{first.removeprefix('steering.')} {does}", param)
        self.first = first
        """JSON path of the intervention that came first."""
        self.does = does


class DoseTooLargeError(RequestError):
    code = "dose_too_large"

    def __init__(self, site: str, dose: float, max_dose: float, parts: Iterable[tuple[str, float]], param: str) -> None:
        shares = ", ".join(f"{feature} {dose_in_words(share)}" for feature, share in parts)
        said = dose_in_words(dose)
        if float(said) <= max_dose:  # rounded, it would seem to be allowed
            said = f"{dose:.9g}"
        super().__init__(
            f"At {site} this could move a token by {said} times the stream's median length ({shares}); this "
            f"server allows {max_dose:g}.",
            param,
        )


class UnknownSAEError(RequestError):
    code = "unknown_sae"

    def __init__(self, name: str, loaded: Iterable[str], param: str) -> None:
        loaded = list(loaded)
        super().__init__(
            f"No SAE named {shown(name)} is loaded.{did_you_mean(name, loaded)} Loaded: {listed(loaded)}.",
            param,
        )


class UnknownFeatureError(RequestError):
    code = "unknown_feature"

    def __init__(self, sae: str, name: str, named: Iterable[str], d_sae: int, param: str) -> None:
        named = list(named)
        super().__init__(
            f"SAE {sae!r} has no feature named {shown(name)}.{did_you_mean(name, named)} Named: {listed(named)}; "
            f"or give an index from 0 to {d_sae - 1}.",
            param,
        )


class FeatureOutOfRangeError(RequestError):
    code = "feature_out_of_range"

    def __init__(self, sae: str, index: int | str, d_sae: int, param: str) -> None:
        super().__init__(f"SAE {sae!r} has features 0 to {d_sae - 1}; there is no {index}.", param)


class UnknownVectorError(RequestError):
    code = "unknown_vector"

    def __init__(self, name: str, held: Iterable[str], param: str, status: int = 400) -> None:
        held = sorted(held)
        super().__init__(
            f"There is no vector named {shown(name)}.{did_you_mean(name, held)} Uploaded: {listed(held)}.",
            param,
        )
        self.status = status


class InvalidVectorError(RequestError):
    code = "invalid_vector"


class VectorTooLargeError(InvalidVectorError):
    status = 413


class VectorExistsError(RequestError):
    code = "vector_exists"

    def __init__(self, name: str, where: str) -> None:
        super().__init__(
            f"Another vector is named {name!r} ({where}), and vectors do not change: delete it, or choose another name.",
            "name",
        )


class VectorsFullError(RequestError):
    code = "vectors_full"

    def __init__(self, site: str, capacity: int) -> None:
        super().__init__(
            f"{site} holds {capacity} vectors, and no more: delete one, or serve with a larger --max-vectors.",
            "name",
        )


class DatabaseUnavailableError(RequestError):
    status = 503
    type = "server_error"
    retry_after_s = 1

    def __init__(self) -> None:
        # not the reason: a driver's message names hosts and users, which are the operator's alone
        super().__init__("The database of variants and vectors cannot be used; the server's log says why.", None)


class VectorsBusyError(RequestError):
    status = 503
    type = "server_error"
    code = "vectors_busy"
    retry_after_s = 1

    def __init__(self, site: str) -> None:
        super().__init__(
            f"All rows for vectors at {site} are taken by answers that are still being written, of vectors that have been "
            "deleted meanwhile. Try again later.",
            None,
        )


class VectorNotKeptError(RequestError):
    status = 503
    type = "server_error"
    code = "vector_not_kept"
    retry_after_s = 1


class VectorsUnavailableError(DatabaseUnavailableError):
    code = "vectors_unavailable"


class UnknownVariantError(RequestError):
    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str], near: str | None, param: str, status: int) -> None:
        meant = f" Did you mean {near!r}?" if near else ""
        super().__init__(f"There is no variant {shown(name)}.{meant} There are: {listed(known)}.", param)
        self.status = status


class UnknownModelError(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str], near: str | None) -> None:
        meant = f" Did you mean {near!r}?" if near else ""
        super().__init__(f"There is no model {shown(name)}.{meant} There are: {listed(known)}.", "model")


class BareVariantError(RequestError):
    status = 404
    code = "model_not_found"

    def __init__(self, name: str, variant: str) -> None:
        super().__init__(f"There is no model {name!r}. Did you mean the variant {variant!r}?", "model")


class AliasTakenError(RequestError):
    code = "alias_taken"

    def __init__(self, alias: str, of: str, param: str) -> None:
        super().__init__(f"{alias!r} is {of} already; an alias is of one variant alone. Choose another.", param)


class VariantReadOnlyError(RequestError):
    code = "variant_read_only"

    def __init__(self, variant: str, param: str) -> None:
        super().__init__(f"{variant} comes from the feature book and is read-only: neither changed nor deleted.", param)


class VariantChangedError(RequestError):
    code = "variant_changed"

    def __init__(self, version: str) -> None:
        super().__init__(
            f"{version} was created with other weights, names or maximum activations than are served now, or by another "
            "version of saeclamp, so it would not do what it did. Create it again to use it as it is now.",
            "model",
        )


class VariantsUnavailableError(DatabaseUnavailableError):
    code = "variants_unavailable"


class SearchUnavailableError(RequestError):
    status = 500
    type = "server_error"
    code = "search_unavailable"

    def __init__(self) -> None:
        super().__init__("Features cannot be searched: preparing it failed, and the server's log says why.", None)


class BusyError(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "steering_busy"
    retry_after_s = 1

    def __init__(self, num_waiting: int, capacity: int) -> None:
        super().__init__(
            f"{capacity} features are in use, which is all that this server allows at once, and {num_waiting} requests "
            "wait for some. Try again later.",
            "steering",
        )


class StoppingError(RequestError):
    status = 503
    type = "server_error"
    code = "server_stopping"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The server is stopping: it finishes the requests it has, and takes no more.", None)


class EngineGoneError(RequestError):
    status = 503
    type = "server_error"
    code = "engine_gone"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("The engine has died, so the server ends.", None)


class NotAppliedError(RequestError):
    status = 500
    type = "server_error"
    code = "steering_not_applied"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The engine could not apply the steering of this request: {reason}", "steering")


class ServerFailedError(RequestError):
    status = 500
    type = "server_error"
    code = "server_failed"

    def __init__(self) -> None:
        super().__init__("The server failed; its log says why.", None)

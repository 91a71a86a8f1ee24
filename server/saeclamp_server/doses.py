"""How long an edit is beside the residual stream it is added to, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saeclamp_saes import SAEEntry
from saeclamp_saes.clamping import MOVES
from saeclamp_server.errors import DoseTooLargeError, InvalidSteeringError
from saeclamp_server.program import Edit
from saeclamp_server.scopes import can_meet


@dataclass(frozen=True)
class Lengths:
    """Lengths where an SAE writes (first), as measured in the running engine."""

    stream: float | None
    """Median length of the residual stream's vectors, sinks excluded; None where too few tokens were ordinary."""
    rows: Sequence[float]
    """Of each feature: length that one unit of activation adds, at a token of the median scale."""


def in_act(value: float, lengths: Lengths, index: int, path: str) -> float:
    """Convert multiples of the stream's median length to the encoder's units. Raises RequestError."""
    if lengths.stream is None:
        raise InvalidSteeringError("The length of the residual stream could not be measured at this SAE's site.", path)
    if not lengths.rows[index]:
        raise InvalidSteeringError("This feature's decoder row is empty, so it has no length to measure by.", path)
    return value * lengths.stream / lengths.rows[index]


def check_doses(
    edits: Sequence[Edit],
    saes: Mapping[str, SAEEntry],
    lengths: Mapping[str, Lengths],
    max_dose: float,
    prompt_len: int | None,
) -> None:
    """
    Refuse edits that could together move a token by more than `max_dose` times the stream's median length.

    Edits that can meet at a token of one site are added up, each as if the feature's activation there were none or its
    stored maximum, whichever makes it longer.
    Raises DoseTooLargeError, or InvalidSteeringError where there is nothing to measure by.
    """
    doses = [_dose(edit, saes[edit.sae], lengths[edit.sae]) for edit in edits]
    for edit in edits:
        site = saes[edit.sae].summary.site
        together = [
            other
            for other, second in enumerate(edits)
            if saes[second.sae].summary.site == site and can_meet(edit.tokens, second.tokens, prompt_len)
        ]
        total = sum(doses[other] for other in together)
        if total > max_dose:
            longest = max(together, key=lambda other: doses[other])
            parts = [(f"{edits[other].sae}/{edits[other].index}", doses[other]) for other in together]
            raise DoseTooLargeError(str(site), total, max_dose, parts, f"steering.interventions[{longest}]")


def _dose(edit: Edit, sae: SAEEntry, lengths: Lengths) -> float:
    if lengths.stream is None:
        raise InvalidSteeringError(
            f"The length of the residual stream could not be measured at {sae.summary.site}, and this server bounds doses.",
            "steering",
        )
    note = sae.features.get(edit.index)
    strongest = note.max_act if note is not None and note.max_act is not None else 0.0
    move = MOVES[edit.op](edit.value)
    farthest = max(
        abs(min(max(move.offset + move.gain * act, move.low - act), move.high - act)) for act in (0.0, strongest)
    )
    return farthest * lengths.rows[edit.index] / lengths.stream

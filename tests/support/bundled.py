"""What tests ask of the bundled SAE, read from its feature book, so that another one can be bundled."""

from __future__ import annotations

from saeclamp_saes import find_sae, open_entry

ENTRY = open_entry(find_sae("bundled"))
D_SAE = ENTRY.summary.d_sae
LAYER = ENTRY.summary.reads[0].layer
_NOTES = {note.name: note for note in ENTRY.features.values() if note.max_act is not None}
_BRIDGE = _NOTES.pop("golden-gate")
GOLDEN_GATE = _BRIDGE.index
assert _BRIDGE.max_act is not None
assert _BRIDGE.clamp is not None
MAX_ACT = _BRIDGE.max_act
STRENGTH = _BRIDGE.clamp[1]
"""The strongest clamp that works, in multiples of `MAX_ACT`."""
ACT = round(STRENGTH * MAX_ACT, 1)
"""The same in the encoder's units."""
OTHERS = [(note.index, round(0.9 * note.max_act, 1)) for note in _NOTES.values() if note.max_act is not None]
"""Other features with a name, and what they can be clamped to."""
UNNAMED = next(index for index in range(D_SAE) if index not in ENTRY.features)

"""Sites: places in a model, under one naming scheme, into which those of checkpoints are translated."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

Point = Literal[
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_z",
    "attn_out",
    "attn_out_raw",
    "mlp_in",
    "mlp_in_no_gain",
    "mlp_out",
    "mlp_out_raw",
]
"""
Vectors of a transformer block.

embed           output of the embedding (layer 0)
resid_pre       residual stream as it enters the first block; that of a later block L is `resid_post` L-1
resid_mid       residual stream after attention was added, before the MLP's norm
resid_post      residual stream as the block leaves it
attn_z          attention heads' outputs side by side, as they enter o_proj
attn_out        what attention adds to the residual stream (after its own norm, where an architecture has one)
attn_out_raw    output of o_proj, before such a norm; the same as `attn_out` where there is none
mlp_in          what the MLP reads: normed, with the norm's gain
mlp_in_no_gain  the same without the gain: resid_mid over its root mean square
mlp_out         what the MLP adds to the residual stream (after its own norm, where an architecture has one)
mlp_out_raw     output of down_proj, before such a norm; the same as `mlp_out` where there is none
"""

POINTS: tuple[Point, ...] = get_args(Point)

FORWARD: tuple[Point, ...] = (
    *("embed", "resid_pre", "attn_z", "attn_out_raw", "attn_out", "resid_mid"),
    *("mlp_in_no_gain", "mlp_in", "mlp_out_raw", "mlp_out", "resid_post"),
)
"""The points of a block in the order in which a forward pass reaches them."""


class Site(NamedTuple):
    """A place in the model, for example `resid_post 19`."""

    point: Point
    layer: int

    def __str__(self) -> str:
        return f"{self.point} {self.layer}"

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: smaller for a site that a forward pass reaches earlier."""
        return self.layer, FORWARD.index(self.point)

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `resid_post 19` or `resid_post.19`. Raises ValueError that lists the points."""
        match = re.fullmatch(r"([a-z_]+)[ .](\d{1,4})", text)
        point = next((point for point in POINTS if match and match[1] == point), None)
        # there is one embedding, not one a block: only layer 0 of it is a site
        if match is None or point is None or (point == "embed" and match[2].strip("0")):
            raise ValueError(f"{text!r} is not a site such as 'resid_post.19'; points: {', '.join(POINTS)}.")
        return cls.canonical(point, int(match[2]))

    @classmethod
    def canonical(cls, point: Point, layer: int) -> Site:
        """Name the place once: what enters a block is what the block before it leaves."""
        return cls("resid_post", layer - 1) if point == "resid_pre" and layer > 0 else cls(point, layer)


TRANSFORMER_LENS: dict[str, Point] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_z": "attn_z",
    "attn.o.hook_in": "attn_z",
    "attn.o.hook_out": "attn_out_raw",
    "hook_attn_out": "attn_out",
    "hook_mlp_in": "resid_mid",  # before ln2, whatever its name suggests
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in_no_gain",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out_raw",
}
"""Points by the part of a hook's name after `blocks.<layer>.`, in a HookedTransformer or a TransformerBridge."""

HUGGING_FACE: dict[str, Point] = {
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "attn_z",
    "self_attn.o_proj.output": "attn_out_raw",
    "self_attn.output": "attn_out_raw",
    "attn.c_proj.input": "attn_z",
    "attn.c_proj.output": "attn_out_raw",
    "attn.output": "attn_out_raw",
    "attention.dense.input": "attn_z",
    "attention.dense.output": "attn_out_raw",
    "pre_feedforward_layernorm.input": "resid_mid",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.input": "mlp_in",
    "mlp.output": "mlp_out_raw",
    "mlp.down_proj.output": "mlp_out_raw",
    "mlp.c_proj.output": "mlp_out_raw",
    "mlp.dense_4h_to_h.output": "mlp_out_raw",
    "post_feedforward_layernorm.output": "mlp_out",
}
"""
Points by the part after `model.layers.<layer>.` or `transformer.h.<layer>.`. `post_attention_layernorm` is missing on
purpose: it follows attention in sandwich-norm models and precedes the MLP in all others, so the loader that meets it must
say which.
"""


def from_transformer_lens(hook: str) -> Site | None:
    """Translate `blocks.5.hook_resid_pre`; None for a hook that is no place of ours."""
    if hook in ("hook_embed", "embed.hook_out"):
        return Site("embed", 0)
    match = re.fullmatch(r"blocks\.(\d{1,4})\.([A-Za-z0-9_.]+)", hook)
    point = TRANSFORMER_LENS.get(match[2]) if match else None
    return Site.canonical(point, int(match[1])) if match and point else None


def from_hugging_face(module: str) -> Site | None:
    """Translate `model.layers.5.output` or `layers.5.mlp` (a bare module means its output); None if it is no place."""
    if re.fullmatch(r"(model\.)?embed_tokens(\.output)?|(transformer\.)?wte(\.output)?", module):
        return Site("embed", 0)
    match = re.fullmatch(
        # prefixes may follow each other: multimodal models have model.language_model.layers
        r"(?:model\.|language_model\.|transformer\.|gpt_neox\.)*(?:layers|h)\.(\d{1,4})(?:\.([a-z0-9_.]+))?",
        module,
    )
    if match is None:
        return None
    rest = match[2] or ""
    if not rest.endswith(("input", "output")):
        rest = f"{rest}.output" if rest else "output"
    point = HUGGING_FACE.get(rest)
    return Site.canonical(point, int(match[1])) if point else None

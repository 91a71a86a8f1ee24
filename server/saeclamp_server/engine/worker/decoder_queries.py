"""Worker process: decoder queries, which are questions about an SAE's decoder rows, answered where the weights are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saeclamp_saes import SAE
from saeclamp_saes.lm.architectures import LAYOUTS, norm_gain
from saeclamp_saes.lm.logit_lens import IN_STREAM
from saeclamp_saes.parts import parts_of


def longest_rows(sae: SAE, count: int) -> list[int]:
    """Find the features with the longest decoder rows."""
    lengths = torch.cat([sae.W_dec[part].float().norm(dim=1) for part in parts_of(sae.d_sae, 4 * sae.d_out)])
    indices: list[int] = lengths.topk(min(count, sae.d_sae)).indices.tolist()
    return indices


def nearest_rows(sae: SAE, indices: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
    """
    Find the features whose decoder rows have the largest cosine with those of `indices`; the nearest first, not itself.

    returns: per index, (index, cosine) of `count` others
    """
    asked = _unit_rows(sae.W_dec[list(indices)])
    cosines = torch.cat(
        [
            _unit_rows(sae.W_dec[part]) @ asked.T  # a copy of the whole decoder might not fit beside the model
            for part in parts_of(sae.d_sae, 2 * 4 * sae.d_out)
        ]
    ).T
    found = []
    for index, of_index in zip(indices, cosines, strict=True):
        of_index[index] = -torch.inf
        top = of_index.topk(min(count, sae.d_sae - 1))
        found.append([*zip(top.indices.tolist(), top.values.tolist(), strict=True)])
    return found


def _unit_rows(rows: Tensor) -> Tensor:
    """Scale rows to norm 1. A zero row stays zero, and has cosine 0 with all others."""
    return nn.functional.normalize(rows.float(), dim=1)


@torch.inference_mode()
def logit_alignment(
    model: nn.Module, sae: SAE, indices: Sequence[int], token_ids: Sequence[int]
) -> list[list[float]] | None:
    """
    Find what some decoder rows add to the logits of some tokens by the direct path, up to the final norm's scale.

    returns: (num_indices, num_token_ids) as lists; None where it is not known: no unembedding in this process, an unknown
             final norm, or an SAE that does not write to the residual stream
    """
    # layers behind the SAE are left out (the direct path), so the row must be added to the stream that the final norm reads
    norm = _final_norm(model)
    if norm is None or sae.site.point not in IN_STREAM or len(sae.writes) != 1:
        return None
    weight = norm.weight
    assert isinstance(weight, Tensor)
    rows = sae.W_dec[list(indices)].to(weight.device, weight.dtype)
    if "bias" in dict(norm.named_parameters()):  # a layer norm centres
        rows = rows - rows.mean(dim=1, keepdim=True)
    logits: Any = model.compute_logits(rows * norm_gain(norm, weight.dtype))  # type: ignore[operator]
    if logits is None:  # another worker of the group gathers them
        return None
    aligned: list[list[float]] = logits[:, list(token_ids)].float().tolist()
    return aligned


def _final_norm(model: nn.Module) -> nn.Module | None:
    layout = LAYOUTS.get(type(model).__name__)
    if layout is None or not hasattr(model, "compute_logits"):
        return None
    try:
        norm = model.get_submodule(layout.final_norm)
    except AttributeError:
        return None
    return norm if getattr(norm, "weight", None) is not None else None  # another stage of the pipeline has it

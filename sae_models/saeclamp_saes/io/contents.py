"""An SAE's files by their names: the weights, and files beside them that no activation depends on."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence

from saeclamp_saes.errors import CheckpointError

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
READABLE = (".safetensors", ".npz")
CHECKPOINTS = "checkpoints"
"""A folder inside an SAE's, with its weights (Llama Scope) or with earlier steps of the same training."""
WHITENING = "activation_whitening.safetensors"
"""A part of SAELens's SAEs that were trained on whitened vectors."""

RUN_STATE = re.compile(
    r"sparsity\.safetensors|activations_store_state\.safetensors|trainer_state\.pt"  # SAELens
    r"|(?:optimizer|lr_scheduler)_\d+\.pt|rank_\d+_state\.pt|state\.pt"  # sparsify
    r"|optimizer\.(?:pt|bin)|scheduler\.(?:pt|bin)|rng_state(?:_\d+)?\.pth|training_args\.bin"  # transformers
)
"""Names of feature densities and of a trainer's state, which no activation depends on."""
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
LAYER = re.compile(
    r"(?<![A-Za-z0-9])(?:[Ll]ayers?[_.-]?|blocks?[_.-]?|SAE-l|L(?!0[_.-]\d)|W_(?:enc|dec)_)(\d{1,4})(?![A-Za-z0-9])"
)
"""The number of a layer in a name. `L0_71` says how many features are active, not which layer it is."""


def parse_layer(name: str) -> int | None:
    """
    Find the layer that a file's name states, as in `16k-layer_12.safetensors`, `layer12.sae.pt` or `W_enc_12.safetensors`.

    A bare number is one only if the name has nothing else (`12.pt`): others are widths, versions and models' sizes. None
    also for a name that states several.
    """
    bare = re.fullmatch(rf"(\d{{1,4}})(?:{'|'.join(map(re.escape, READABLE + PICKLES))})?", name)
    stated = {int(match[1]) for match in LAYER.finditer(name)} if bare is None else {int(bare[1])}
    return stated.pop() if len(stated) == 1 else None


def is_weights(name: str) -> bool:
    """Tell whether a file, by its name, may hold an SAE's weights."""
    return name.endswith(READABLE + PICKLES) and name != WHITENING and RUN_STATE.fullmatch(name) is None


def choose_weights(names: Iterable[str], where: object, layer: int | None) -> Sequence[str]:
    """
    Choose the file with the weights among those of one folder that may hold them; an empty list if there are none.

    names:   names that pass `is_weights`
    where:   the folder, for errors
    layer:   the layer to choose where there are several files; None if the user does not say
    returns: one name; for one layer of a cross-layer transcoder, its encoder's
    Raises CheckpointError when there is no telling which, or when something beside it may be a part of it.
    """
    files = sorted(names)
    # what is readable comes first: a converted file may stand beside its pickle
    readable = [name for name in files if name.endswith(READABLE)]
    several = readable or files
    chosen = several if layer is None or len(several) < 2 else [name for name in several if parse_layer(name) == layer]
    # a layer of a cross-layer transcoder has a second file, which the loader opens from the name of the first
    chosen = [name for name in chosen if not name.startswith("W_dec_")] or chosen
    if several and not chosen:
        raise CheckpointError(f"{where} has no weights file for layer {layer}.")
    if len(chosen) > 1:
        raise CheckpointError(_several(chosen, where))
    if len(readable) == 1:
        _check_beside(readable[0], files, where)
    return chosen


def _several(names: Sequence[str], where: object) -> str:
    if all(SHARD.fullmatch(name) for name in names):
        return f"{where} holds an SAE in {len(names)} parts ({names[0]} ...), which is not read: save it as one file."
    choice = ", or choose with ?layer=N" if any(parse_layer(name) is not None for name in names) else ""
    return f"{where} holds several SAEs ({', '.join(names[:4])} ...): name one file{choice}."


def _check_beside(readable: str, files: Sequence[str], where: object) -> None:
    """Refuse a pickle of another name: it may hold a factor or a bias that the weights are to be used with."""
    unknown = [name for name in files if name != readable and _stem(name) != _stem(readable)]
    if unknown:
        raise CheckpointError(
            f"{where} holds {', '.join(unknown[:4])} beside {readable}, and it is not known what that says: name "
            f"{readable} itself if it is the whole SAE."
        )


def _stem(name: str) -> str:
    stem = posixpath.splitext(name)[0]
    return "model" if stem == "pytorch_model" else stem  # as transformers calls the same thing in two types

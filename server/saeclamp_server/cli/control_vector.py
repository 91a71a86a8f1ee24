"""
`saeclamp vectors import FILE --model MODEL`: a control vector of llama.cpp or repeng becomes vectors and one variant.

Such a GGUF file has a tensor `direction.N` for each layer N, counted from 0, and both add `strength * direction.N` to what
layer N puts out, at every token: an `add` in unit `act` at `resid_post.N`, special tokens included.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.server_client import CommandError, add_command
from saeclamp_server.cli.steering_flags import saved_as

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saeclamp import Client
    from saeclamp.types import Add

MAX_BYTES = 256 << 20
"""Bytes of a file: 128 layers of a stream four times as wide as any model's today."""
MAX_SAID = 80
"""Characters that are kept of a word of the file."""


class ControlVector(NamedTuple):
    """A file of directions, one for each layer."""

    directions: dict[int, NDArray[np.float32]]
    """Layer to its direction: (width,)."""
    model_hint: str | None
    """Kind of the model that it was made for, such as `llama`."""
    layer_count: int | None
    """Count in the file's own words; some writers count directions, some layers."""
    sha256: str


def add_import(subcommands: Any) -> None:
    """Add the command below `saeclamp vectors`."""
    parser = add_command(
        subcommands, "import", "make vectors and a variant of a control vector (GGUF, of repeng or llama.cpp)", _import
    )
    parser.add_argument("file", type=Path, help="a GGUF file with tensors direction.N")
    parser.add_argument("--model", required=True, help="the served model that it was made for")
    parser.add_argument("--name", help="of the variant, and of its vectors before '-N' (default: the file's)")
    parser.add_argument("--strength", type=float, default=1.0, help="factor of every direction (default 1)")
    parser.add_argument("--layers", metavar="FIRST-LAST", help="these alone (default: all that the file has)")


def read_control_vector(path: Path) -> ControlVector:
    """Read a file. Raises CommandError."""
    try:
        import numpy as np
        import safetensors.numpy  # noqa: F401  `safetensors_of` needs it
        from gguf import GGMLQuantizationType, GGUFReader
    except ImportError as exc:
        raise CommandError(f"This needs gguf and safetensors: pip install gguf safetensors ({exc}).") from exc
    floats = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CommandError(f"{path} has {size} bytes; a control vector has {MAX_BYTES} at most.")
        reader = GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items()}
        tensors = [(tensor.name, tensor.tensor_type, np.array(tensor.data)) for tensor in reader.tensors]
    except OSError as exc:
        raise CommandError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as exc:  # of damaged files
        raise CommandError(f"{path} is no readable GGUF file: {escape_to_one_line(str(exc))[:200]}.") from exc
    directions: dict[int, NDArray[np.float32]] = {}
    for name, kind, numbers in tensors:
        found = re.fullmatch(r"direction\.([0-9]{1,4})", name)
        if found is None:
            said = f"{str(facts.get('general.architecture', 'no architecture'))[:MAX_SAID]!r} with {name[:MAX_SAID]!r}"
            raise CommandError(
                escape_to_one_line(f"{path} is no control vector, of tensors direction.N: it is {said}.")
            )
        if kind not in floats or numbers.ndim != 1:
            raise CommandError(f"{path}: {name} must be one row of F32 or F16, not {numbers.ndim} of {kind.name}.")
        if (layer := int(found[1])) == 0:
            raise CommandError(f"{path}: {name} is at layer 0, where llama.cpp applies none; it refuses the file too.")
        if layer in directions:
            raise CommandError(f"{path}: layer {layer} has two directions.")
        directions[layer] = numbers.astype(np.float32)
    if not directions:
        raise CommandError(f"{path} holds no tensor direction.N.")
    hint, count = facts.get("controlvector.model_hint"), facts.get("controlvector.layer_count")
    return ControlVector(
        dict(sorted(directions.items())),
        hint if isinstance(hint, str) else None,
        count if isinstance(count, int) else None,
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def safetensors_of(vector: ControlVector, layer: int, file: str) -> bytes:
    """Write one direction as `POST /v1/vectors` takes it."""
    from safetensors.numpy import save

    made_for = f", made for {vector.model_hint[:MAX_SAID]}" if vector.model_hint else ""
    source = f"direction.{layer} of the control vector {file[:200]}{made_for}, sha256 {vector.sha256}"
    said = {"site": "resid_post", "layer": str(layer), "sign": "+1", "source": escape_to_one_line(source)}
    return bytes(save({"vector": vector.directions[layer]}, metadata=said))


def _import(args: argparse.Namespace, client: Client) -> int:
    from saeclamp import SaeclampError

    vector = read_control_vector(args.file)
    layers = [layer for layer in _chosen(args.layers, vector) if vector.directions[layer].any()]
    if not layers:
        raise CommandError("All of these directions are zero, and would change nothing.")
    name = args.name or re.sub(r"[^A-Za-z0-9_.-]+", "-", args.file.stem).strip("-.")
    adds = _adds(name, layers, args.strength)
    kept = client.vectors.list()
    missing = [layer for layer in layers if f"resid_post {layer}" not in kept.sites]
    if missing:
        flags = " ".join(f"--vector-site resid_post.{layer}" for layer in missing)
        raise CommandError(
            f"The server has no place for vectors behind layers {', '.join(map(str, missing))}. Serve with {flags}, or "
            "with --vector-site all."
        )
    new = []
    try:
        for layer in layers:
            own = f"{name}-{layer}"
            client.vectors.upload(own, safetensors_of(vector, layer, args.file.name))
            if own not in kept.names:
                new.append(own)
        description = f"Control vector {args.file.name}, {args.strength:g} times"
        variant = client.variants.create(name, adds, description=escape_to_one_line(description), base=args.model)
    except SaeclampError:
        for own in new:  # all of it, or nothing
            client.vectors.delete(own)
        raise
    hint = f", made for {vector.model_hint}" if vector.model_hint else ""
    print(escape_to_one_line(f"{len(layers)} vectors, {name}-{layers[0]} to {name}-{layers[-1]}{hint}."))
    print(escape_to_one_line(f"The model {variant.id} adds them all, {args.strength:g} times."))
    if variant.is_new is False:
        print(escape_to_one_line(saved_as(variant)), file=sys.stderr)
    return 0


def _chosen(text: str | None, vector: ControlVector) -> list[int]:
    from saeclamp.types import MAX_INTERVENTIONS

    layers = [*vector.directions]
    if text is not None:
        if (found := re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text)) is None:
            raise CommandError("--layers is FIRST-LAST, such as 10-20, or one layer.")
        first, last = int(found[1]), int(found[2] or found[1])
        layers = [layer for layer in layers if first <= layer <= last]
    if not layers:
        raise CommandError(f"The file has layers {', '.join(map(str, vector.directions))}, none of them in {text}.")
    if len(layers) > MAX_INTERVENTIONS:
        raise CommandError(
            f"The file has {len(layers)} directions, and a variant at most {MAX_INTERVENTIONS} interventions: choose some "
            f"with --layers, such as {layers[0]}-{layers[MAX_INTERVENTIONS - 1]}."
        )
    return layers


def _adds(name: str, layers: list[int], strength: float) -> list[Add]:
    from saeclamp import Add

    return [
        Add(vector=f"{name}-{layer}", value=strength, unit="act", tokens="all", special_tokens=True) for layer in layers
    ]

"""`saeclamp serve MODEL --sae NAME_OR_FOLDER [any flag of vllm serve]`."""

from __future__ import annotations

import importlib.util
import sys

from saeclamp_server.args import parse


def main() -> None:
    """Run the command line."""
    options = parse(sys.argv[1:])
    missing = [
        name for name in ("torch", "safetensors", "transformers", "vllm") if importlib.util.find_spec(name) is None
    ]
    if missing:
        sys.exit(
            f"saeclamp: {', '.join(missing)} not installed. In a clone of the repository `make serve` installs all that a "
            "server needs; by hand it is the extra 'cpu', or 'server' for an NVIDIA GPU."
        )
    from saeclamp_server.launch import launch  # after the check, because it needs all of them
    from saeclamp_server.preflight import StartupError

    try:
        launch(options)
    except StartupError as exc:
        sys.exit(f"saeclamp: {exc}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""
The command line. `args.py` has the options of `serve`; the rest speaks to a running server.

    server_client.py  the flags that say where the server is, and its refusals as sentences
    tables.py         tables and columns as wide as the terminal
    output.py         standard output that is closed or full
    progress.py       bars for what takes longer
    texts.py          texts and conversations on a command line
    steering_flags.py  steering on a command line
    features.py       `saeclamp features search | show | inspect | contrast | attribute | neighbours | suggest`
    variants.py       `saeclamp variants list | show | create | delete | export | import`
    vectors.py        `saeclamp vectors upload | list | get | delete`
    control_vector.py  `saeclamp vectors import`, which needs the packages gguf and safetensors
    steering_trials.py   `saeclamp validate | compare`
    fleets.py         `saeclamp fleets list | show | forget`, which reads the database itself
    chat.py           `saeclamp chat`: unsteered, steered and prompted answers in columns
    calibrate.py      `saeclamp calibrate`, which may start a server of its own
    demo.py           `make demo`

What speaks to a server needs no more than the client does: neither torch, nor numpy, nor rich.
"""

from __future__ import annotations

from typing import Any

from saeclamp_server.cli import chat, features, fleets, steering_trials, variants, vectors


def register(commands: Any) -> None:
    """Add the commands to the command line; `commands` is what `ArgumentParser.add_subparsers` returned."""
    for command in (features, variants, vectors, fleets, steering_trials, chat):
        command.register(commands)

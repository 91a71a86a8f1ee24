"""Record all goldens anew: `python -m tests.goldens`."""

from tests.goldens.record import GOLDENS, path_of, text_of

for name in GOLDENS:
    path_of(name).write_text(text_of(name))
    print(f"{path_of(name)} {path_of(name).stat().st_size:,} bytes")

#!/bin/sh
# Writes the versions that `make serve`, `make test` and the Dockerfile install: `make lock` calls it.
#
# uv resolves for every Python that we support at once, so a line may name the Pythons or machines it is for. The files are
# constraints, not requirements: pip still decides what a machine needs, and finds it where pip is told to look.
set -eu
cd "$(dirname "$0")/../.."

UV_VERSION=0.13.9
TOOLS=.venv/lock
[ -x "$TOOLS/bin/uv" ] && "$TOOLS/bin/uv" --version | grep -qF " $UV_VERSION " || {
	"$1" -m venv --clear "$TOOLS"
	"$TOOLS/bin/python" -m pip --disable-pip-version-check install --quiet "uv==$UV_VERSION"
}

HEADER="# Written by \`make lock\`: do not edit. Every version that pip may choose."

# compile OUTPUT ARGUMENT...: versions that OUTPUT has already are kept where they fit.
compile() {
	output=$1
	shift
	"$TOOLS/bin/uv" pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --output-file "$output" "$@"
	{ echo "$HEADER"; cat "$output"; } >"$output.part"
	mv "$output.part" "$output"
	echo "$output: $(grep -c == "$output") versions"
}

build=$(mktemp) # what makes a wheel of this project, and pip itself
trap 'rm -f "$build"' EXIT
printf '%s\n' pip hatchling editables >"$build"

# Of these two only the CPU's may come from where pip was told to look: torch==2.13.0+cpu is nowhere else.
cpu=deploy/constraints/cpu.txt server=deploy/constraints/server.txt
UV_FIND_LINKS="${PIP_FIND_LINKS-}" UV_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL-}" UV_INDEX_STRATEGY=unsafe-best-match \
	compile $cpu --upgrade --extra cpu --extra demo --extra postgres --extra train --extra ray --extra dev pyproject.toml "$build"
cp $cpu $server # as near to the other as it can be
compile $server --extra server --extra demo --extra postgres --extra train --extra ray --extra dev pyproject.toml "$build"
for tool in tests/ecosystem/*.in; do
	cp $cpu "${tool%.in}.txt"
	compile "${tool%.in}.txt" "$tool"
done

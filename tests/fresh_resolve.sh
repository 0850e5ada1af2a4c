#!/bin/sh
# Resolve every version afresh in a throw-away environment. With `write`, constraints.txt is rewritten.
# torch keeps its pin: the newest build may pull gigabytes. With CANARY=1 it does not, and the upper limits in
# pyproject.toml are lifted too, there and then: for a checkout that is thrown away.
set -eu
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/env"
torch=$(grep '^torch==' constraints.txt)
if [ -n "${CANARY:-}" ]; then
  torch=torch
  sed -i 's/^\(  "[a-z-]*>=[0-9.]*\),<[0-9.]*"/\1"/' pyproject.toml
fi
"$scratch/env/bin/pip" install -q "$torch"
"$scratch/env/bin/pip" install -q "$torch" '.[test,classroom]'
{
  sed -n '/^#/p' constraints.txt
  "$scratch/env/bin/pip" freeze --exclude mechlab-course | sed 's/+[a-z0-9.]*$//'
} > "$scratch/constraints.txt"
if [ "${1:-}" = write ]; then
  cp "$scratch/constraints.txt" constraints.txt
else
  diff constraints.txt "$scratch/constraints.txt" || true
fi

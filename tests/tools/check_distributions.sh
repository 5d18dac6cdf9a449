#!/usr/bin/env bash
# The wheel for this interpreter and the one for every CPython install into clean environments; so does the
# sdist, which is built there.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make wheel-abi3
portable=$(ls build/wheels/abi3/*.whl)
case "$portable" in
    *-cp311-abi3-*) ;;
    *) echo "$portable is not an abi3-py311 wheel" >&2; exit 1 ;;
esac
.venv/bin/maturin sdist --out "$work" >/dev/null 2>&1

try() {
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" install --quiet --disable-pip-version-check "$2"
    (cd "$work" && "$work/$1/bin/python" "$OLDPWD/examples/quickstart.py")
}

try wheel "$(ls build/wheels/release/*.whl)"
try portable "$portable"
# The build directory is shared: the sdist's own would compile every dependency once more.
CARGO_TARGET_DIR="$PWD/target" try sdist "$(ls "$work"/*.tar.gz)"

#!/usr/bin/env bash
# What servers and `jetsam salvage` make of the same damage, as a Markdown table.
# usage: benches/damage.sh [DIR]    works in DIR, which needs about 100 MB and is left empty
set -euo pipefail
cd "$(dirname "$0")/.."
export JETSAM_DAMAGE="$(realpath -m "${1:-target/damage}")" JETSAM_BIN="${JETSAM_BIN:-$PWD/target/release/jetsam}"
[ -x "$JETSAM_BIN" ] || cargo build --release --locked
mkdir -p "$JETSAM_DAMAGE"
cd tests/live
exec go test -count=1 -timeout 1h -run '^TestDamage$' -v .

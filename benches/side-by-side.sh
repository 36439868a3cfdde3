#!/usr/bin/env bash
# Times jetsam and a real nats-server on the same stores, turn by turn, and prints a table.
# usage: benches/side-by-side.sh [DIR]    the stores (about 4 GB) are made in DIR by a real server and stay there
set -euo pipefail
cd "$(dirname "$0")/.."
export JETSAM_BENCH="$(realpath -m "${1:-target/bench-stores}")" JETSAM_BIN="$PWD/target/release/jetsam"
cargo build --release --locked
mkdir -p "$JETSAM_BENCH"
cd tests/live
exec go test -count=1 -timeout 2h -run TestSideBySide -v .

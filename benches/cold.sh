#!/usr/bin/env bash
# Checks stores with nothing of them in the page cache, in turns with `cat` of the same files, and prints a Markdown table.
# usage: benches/cold.sh STORE...    needs root, to drop caches; JETSAM_KEY for encrypted stores; ROUNDS=5;
#        JETSAM=PATH for another build
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked
jetsam=${JETSAM:-$PWD/target/release/jetsam}
rounds=${ROUNDS:-5}

# LABEL COMMAND...: seconds, appended to the file of that name.
cold() {
    local label=$1
    shift
    sync
    echo 3 > /proc/sys/vm/drop_caches
    /usr/bin/time -f %e -a -o "$work/$label" "$@" > /dev/null
}
warm() {
    local label=$1
    shift
    "$@" > /dev/null
    /usr/bin/time -f %e -a -o "$work/$label" "$@" > /dev/null
}
median() { sort -n "$work/$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

printf '| store | bytes | `cat` | `check` | 1 thread | `check`, warm | check ÷ cat | MB/s |\n|---|---|---|---|---|---|---|---|\n'
for store in "$@"; do
    work=$(mktemp -d)
    find "$store" -type f -print0 | sort -zV > "$work/files"
    bytes=$(du -sb "$store" | cut -f1)
    for _ in $(seq "$rounds"); do
        cold cat xargs -0 -a "$work/files" cat
        cold check "$jetsam" -q --no-progress check "$store"
        cold one "$jetsam" -q --no-progress check --threads 1 "$store"
        warm warm "$jetsam" -q --no-progress check "$store"
    done
    awk -v n="$(basename "$store")" -v b="$bytes" -v c="$(median cat)" -v k="$(median check)" -v o="$(median one)" -v w="$(median warm)" \
        'BEGIN { printf "| %s | %.2f GB | %.2f s | %.2f s | %.2f s | %.2f s | %.2f | %.0f |\n", n, b/1e9, c, k, o, w, k/c, b/k/1e6 }'
    rm -rf "$work"
done

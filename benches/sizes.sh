#!/usr/bin/env bash
# Makes stores of one stream, each larger than the last, and prints what `info`, `check` and `backup` take for them, as a
# Markdown table: whether a byte costs the same however many there are.
# usage: benches/sizes.sh DIR [GIB...]    DIR needs room for the largest store and its archive, and is left empty;
#        OPTIONS="--compression s2" adds options of make_store
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:?usage: benches/sizes.sh DIR [GIB...]}")
shift
[ $# -gt 0 ] || set -- 1 3 10 30
cargo build --release --locked --bins --example make_store
bin=$PWD/target/release
mkdir -p "$dir"

# COMMAND...: sets $wall, $cpu and $rss of the quickest of three runs (of one that writes).
run() {
    local runs="1 2 3"
    [[ " $* " != *" backup "* ]] || runs=1
    for _ in $runs; do
        /usr/bin/time -f '%e %U %S %M' -o "$dir/time" "$@" > /dev/null
        cat "$dir/time"
    done | sort -n | head -1 > "$dir/best"
    read -r wall user system rss < "$dir/best"
    cpu=$(awk -v u="$user" -v s="$system" 'BEGIN { print u + s }')
    rss=$((rss / 1024))
}

printf '| store | `cat` | `info` | `check` | GB/s | CPU s per GB | peak RSS | `backup` | GB/s | CPU s per GB | peak RSS |\n'
printf '|---|---|---|---|---|---|---|---|---|---|---|\n'
for gib in "$@"; do
    rm -rf "$dir/store" "$dir/out"
    # shellcheck disable=SC2086
    "$bin/examples/make_store" "$dir/store" --messages $((gib * 1990000)) --size 500 --subjects 1000 ${OPTIONS:-} > /dev/null
    bytes=$(du -sb "$dir/store" | cut -f1)
    find "$dir/store" -type f -print0 | sort -zV > "$dir/files"
    run xargs -0 -a "$dir/files" cat
    cat=$wall
    run "$bin/jetsam" -q --no-progress info "$dir/store"
    info=$wall
    run "$bin/jetsam" -q --no-progress check "$dir/store"
    line=$(awk -v b="$bytes" -v c="$cat" -v i="$info" -v w="$wall" -v p="$cpu" -v r="$rss" \
        'BEGIN { printf "| %.2f GB | %.2f s | %.2f s | %.2f s | %.2f | %.3f | %d MiB", b/1e9, c, i, w, b/w/1e9, p*1e9/b, r }')
    run "$bin/jetsam" -q --no-progress backup "$dir/store" "$dir/out"
    awk -v l="$line" -v b="$bytes" -v w="$wall" -v p="$cpu" -v r="$rss" \
        'BEGIN { printf "%s | %.2f s | %.2f | %.3f | %d MiB |\n", l, w, b/w/1e9, p*1e9/b, r }'
done
rm -rf "$dir"/{store,out,time,best,files}
rmdir "$dir" 2> /dev/null || true

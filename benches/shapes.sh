#!/usr/bin/env bash
# Makes stores of odd shapes with examples/make_store and prints what jetsam takes for them, as a Markdown table.
# usage: benches/shapes.sh [DIR]    works in DIR, which needs 8 GB and is left empty; SHAPES="name ..." for some of them,
#        JETSAM=PATH for another build
set -euo pipefail
cd "$(dirname "$0")/.."
dir="$(realpath -m "${1:-target/shapes}")"
cargo build --release --locked --bins --example make_store
bin=$PWD/target/release
jetsam=${JETSAM:-$bin/jetsam}
mkdir -p "$dir"

# VERB STORE [DEST]: the least seconds of three runs (of one that writes), and the highest peak RSS in MiB.
run() {
    local runs="1 2 3"
    [ -z "${3:-}" ] || runs=1
    for _ in $runs; do
        /usr/bin/time -f '%e %M' -o "$dir/time" "$jetsam" -q --no-progress "$1" "$2" ${3:+"$3"} > /dev/null
        cat "$dir/time"
    done | awk 'NR == 1 || $1 < s { s = $1 } $2 > m { m = $2 } END { printf "%.2f s, %d MiB", s, m / 1024 }'
}

shape() { # NAME TEXT OPTIONS...
    local name=$1 text=$2
    shift 2
    [[ " ${SHAPES:-$name} " == *" $name "* ]] || return 0
    rm -rf "$dir/store"
    "$bin/examples/make_store" "$dir/store" "$@" > /dev/null
    local size files
    size=$(du -sm "$dir/store" | cut -f1)
    files=$(find "$dir/store" -type f | wc -l)
    printf '| %s | %s MiB, %s files | %s | %s | %s |\n' "$text" "$size" "$files" \
        "$(run info "$dir/store")" "$(run check "$dir/store")" "$(run backup "$dir/store" "$dir/out")"
    rm -rf "$dir/store" "$dir/out"
}

printf '| store | size | `info` | `check` | `backup` |\n|---|---|---|---|---|\n'
shape small '1,000 messages of 500 bytes' --messages 1000 --size 500
shape blocks '100,000 blocks of 32 kB' --messages 6200000 --size 450 --block-size 32k
shape record 'one record of 64 MiB' --messages 1 --size 64M
shape subjects '10,000,000 subjects, one message each' --kv --messages 10000000 --size 64
shape runs '1,000,000,000 deletes in 10 runs' --messages 1000000 --size 100 --deleted-runs 10x100000000
shape scattered '50,000,000 scattered deletes' --messages 50000000 --size 16 --deleted-scattered 50
shape consumers '50,000 consumers' --messages 100000 --size 100 --consumers 50000
shape streams '10,000 streams of 10 messages' --streams 10000 --messages 10 --size 100
rm -f "$dir/time"
rmdir "$dir" 2> /dev/null || true

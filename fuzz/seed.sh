#!/bin/sh
# Makes fuzz/corpus/TARGET/ from the fixtures: the same files each time, without network.
# Needs tar and xz. What fuzzing has added to the corpus stays.
set -eu
cd "$(dirname "$0")"
fixtures=$PWD/../fixtures
corpus=$PWD/corpus
LC_ALL=C
export LC_ALL

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for t in record s2 crypt meta index mend archive store; do mkdir -p "$corpus/$t"; done

# byte N... : these bytes
byte() { for n; do printf "\\$(printf %03o "$n")"; done; }
# long TEXT : its length in two bytes, little-endian, and the text
long() { byte $((${#1} % 256)) $((${#1} / 256)); printf %s "$1"; }
# short TEXT : its length in one byte, and the text
short() { byte ${#1}; printf %s "$1"; }
# uvarint N
uvarint() {
  n=$1
  while [ "$n" -gt 127 ]; do byte $((n % 128 + 128)); n=$((n / 128)); done
  byte "$n"
}
# slug PATH : a file name
slug() { printf %s "$1" | tr -c 'A-Za-z0-9.-' _; }
small() { [ "$(wc -c <"$1")" -le "$2" ]; }

for store in tiny/2.2.6-plain tiny/2.9.25-plain tiny/2.14.9-plain tiny/2.14.9-aes \
  tiny/2.14.9-chacha tiny/2.15.2-s2 tiny/2.15.2-s2-chacha \
  stores/2.9.25-basic stores/2.7.4-kv stores/2.12.15-new stores/2.15.2-new stores/2.15.2-basic \
  stores/2.10.29-compress stores/2.14.5-compress stores/2.14.5-cluster stores/2.9.25-cluster; do
  mkdir -p "$store"
  xz -dc "$fixtures/$store.tar.xz" | tar -xf - -C "$store"
done

find . -type f | sort | while read -r f; do
  name=$(slug "${f#./}")
  own=${f##*/}
  dir=${f%/*}
  case $f in
  *-aes/* | *-chacha/* | *truth.json | *recovered.json) continue ;;
  */snapshots/*.json)
    cp "$f" "$corpus/meta/$name" ;;
  */meta.inf)
    cp "$f" "$corpus/meta/$name" ;;
  *.blk)
    stream=${dir%/msgs}
    stream=${stream##*/}
    n=${own%.blk}
    if small "$f" 8192; then
      { byte 0 "$n"; short "$stream"; cat "$f"; } >"$corpus/record/$name"
      { byte 1 "$n"; short "$stream"; cat "$f"; } >"$corpus/record/$name-sealed"
      { byte 0; cat "$f"; } >"$corpus/s2/$name"
      # The stream within the container: without the header of 4 bytes and a size of two.
      if [ "$(head -c 3 "$f")" = cmp ]; then
        { byte 0; tail -c +7 "$f"; } >"$corpus/s2/$name-stream"
        { byte 0; tail -c +21 "$f"; } >"$corpus/s2/$name-block"
      fi
    fi ;;
  *.idx | *.fss | *.db | */o.dat | */snap.*)
    if small "$f" 8192; then cp "$f" "$corpus/index/$name"; fi ;;
  */snapshots/*.tar.s2)
    if small "$f" 4096; then
      { byte 0; long ''; cat "$f"; } >"$corpus/archive/$name"
      { byte 5; long "$(cat "${f%.tar.s2}.json")"; cat "$f"; } >"$corpus/archive/$name-backup"
      { byte 0; cat "$f"; } >"$corpus/s2/$name"
    fi ;;
  esac
done
for f in "$fixtures"/vectors/index/*; do
  if small "$f" 8192; then cp "$f" "$corpus/index/$(slug "vector-${f##*/}")"; fi
done

# A log's records hold the append entries of raft: the payload of a record of known place and no subject.
find stores/*cluster -path '*_js_*' -name '*.blk' | sort | while read -r f; do
  if small "$f" 65536; then
    len=$(od -An -tu2 -N2 "$f" | tr -d ' ')
    if [ "${len:-0}" -gt 30 ] && [ "$len" -lt 4096 ]; then
      tail -c +23 "$f" | head -c $((len - 30)) >"$corpus/index/$(slug "entry-$f")"
    fi
  fi
done
# Sequence sets: they lie at the end of index.db, before its last ten bytes or so.
for f in "$fixtures"/vectors/index/*ORDERS.index.db "$fixtures"/vectors/index/*BLOCKS.index.db; do
  set -- $(od -An -v -tx1 -w1 "$f" | grep -n '' | awk -F: '{gsub(/ /,"",$2); if (p=="16" && $2=="02") {print $1-2; exit} p=$2}')
  if [ $# -gt 0 ]; then tail -c +$(($1 + 1)) "$f" | head -c 4096 >"$corpus/index/$(slug "set-${f##*/}")"; fi
done

# Sealed files with their key files. Context: 0 stream, 1 block, 2 consumer.
key=s3cr3t-fixture-key
sealed() { # NAME FLAGS BLOCK CONSUMER KEYFILE FILE
  {
    byte "$2" "$3"
    short "$key"; short "\$G"; short TINY; short "$4"
    byte "$(wc -c <"$5")" 0
    cat "$5" "$6"
  } >"$corpus/crypt/$1"
}
for store in 2.14.9-aes 2.14.9-chacha 2.15.2-s2-chacha; do
  dir="tiny/$store/store/jetstream/\$G/streams/TINY"
  cipher=0
  case $store in *aes*) cipher=4 ;; esac
  for f in meta.inf msgs/index.db; do
    sealed "$(slug "$store-$f")" $cipher 0 '' "$dir/meta.key" "$dir/$f"
  done
  for f in meta.inf o.dat; do
    sealed "$(slug "$store-C-$f")" $((cipher + 2)) 0 C "$dir/obs/C/meta.key" "$dir/obs/C/$f"
  done
  sealed "$store-1.blk" $((cipher + 1)) 1 '' "$dir/msgs/1.key" "$dir/msgs/1.blk"
done

# What is to be mended: whole blocks and files of the tiny stores, right and with a bit flipped.
flip() { # FILE BYTE
  head -c "$2" "$1"
  byte $(($(tail -c +$(($2 + 1)) "$1" | head -c 1 | od -An -tu1) ^ 4))
  tail -c +$(($2 + 2)) "$1"
}
mend() { # NAME FLAGS FILE
  { byte "$2"; cat "$3"; } >"$corpus/mend/$1"
  for at in 3 20 60; do
    if [ "$(wc -c <"$3")" -gt $at ]; then { byte "$2"; flip "$3" $at; } >"$corpus/mend/$1-$at"; fi
  done
}
for store in 2.2.6-plain 2.14.9-plain 2.15.2-s2; do
  dir="tiny/$store/store/jetstream/\$G/streams/TINY"
  if [ $store = 2.15.2-s2 ]; then
    mend "$store" 3 "$dir/msgs/1.blk"
  else
    for flags in 0 33 128; do mend "$store-$flags" $flags "$dir/msgs/1.blk"; done
  fi
  cat "$dir/meta.sum" "$dir/meta.inf" >meta
  mend "$store-meta" 7 meta
  if [ -f "$dir/msgs/index.db" ]; then mend "$store-index" 5 "$dir/msgs/index.db"; fi
done
mend 2.9.25-fss 6 "tiny/2.9.25-plain/store/jetstream/\$G/streams/TINY/msgs/1.fss"
mend 2.14.9-aes-key 6 "tiny/2.14.9-aes/store/jetstream/\$G/streams/TINY/meta.key"

# The other JSON.
printf '%s' '{"delivered":{"consumer_seq":3,"stream_seq":4},"ack_floor":{"consumer_seq":1,"stream_seq":1},"pending":{"2":{"Sequence":2,"Timestamp":1700000000000000000}},"redelivered":{"2":1}}' >"$corpus/meta/consumer-state"
printf '%s' '{"config":{"name":"A","metadata":{"_nats.req.level":"1"}},"state":{"messages":1,"bytes":40,"first_seq":1,"first_ts":"2025-01-01T00:00:00Z","last_seq":1,"last_ts":"2025-01-01T00:00:00.5Z","consumer_count":0}}' >"$corpus/meta/backup"
printf '%s' '2025-11-21T00:36:33.123456789Z' >"$corpus/meta/time"

# Archives of the first kind, unwrapped: a stream directory in a tar.
for store in 2.2.6-plain 2.9.25-plain 2.14.9-plain 2.15.2-s2; do
  (cd "tiny/$store/store/jetstream/\$G/streams/TINY" &&
    tar --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 \
      -cf "$work/tar" $(find meta.inf meta.sum msgs obs -type f | sort))
  for wrap in 5 6 7; do
    { byte $wrap; long ''; cat tar; } >"$corpus/archive/tar-$store-$wrap"
  done
done
# … and of the second: state, a consumer, messages, the end.
entry() { # NAME TIME(zig-zag, one byte) SEQUENCE HEADERS PAYLOAD
  uvarint ${#1}; byte "$2"; uvarint "$3"; uvarint ${#4}; uvarint ${#5}
  printf %s "$1$4$5"
}
{
  printf NATSARC1
  entry state.json 0 0 '' '{"messages":2,"bytes":80,"first_seq":1,"first_ts":"2025-01-01T00:00:00Z","last_seq":3,"last_ts":"2025-01-01T00:00:01Z","num_subjects":2,"num_deleted":1,"consumer_count":1}'
  entry consumers/C 0 0 '' '{"config":{"name":"C","durable_name":"C","ack_policy":"explicit"},"state":{"delivered":{"consumer_seq":1,"stream_seq":1},"ack_floor":{"consumer_seq":0,"stream_seq":0},"pending":{"1":{"Sequence":1,"Timestamp":1735689600000000000}}}}'
  entry orders.a 2 1 '' hello
  entry orders.b 4 3 'NATS/1.0 A: b  ' world
  byte 0 0 0 0 0
} >v2
for wrap in 1 9 3; do
  { byte $wrap; long ''; cat v2; } >"$corpus/archive/v2-$wrap"
done
{ byte 1; long "$(cat "$corpus/meta/backup")"; cat v2; } >"$corpus/archive/v2-backup"

# Each store as it is, with its hashes put right, and one change of each kind.
for store in 0 1 2 3 4 5 6; do
  byte $store >"$corpus/store/$store"
  for what in 0 2 3 4 5 6 7 8 9 10; do
    byte $((store + 128 * (what % 2))) $what $((what + store)) 40 0 2 8 >"$corpus/store/$store-$what"
  done
done

for t in record s2 crypt meta index mend archive store; do
  printf '%-8s %s\n' "$t" "$(find "$corpus/$t" -type f | wc -l)"
done

#!/bin/sh
# Fuzzes each target (or those named) for SECONDS, seeds first; fails at the first crash, hang
# (10 s) or use of more than 1 GiB of memory. Needs a nightly toolchain and cargo-fuzz.
#
#   fuzz/run.sh 15            every target
#   fuzz/run.sh 600 store s2  these
#
# What was found lies in fuzz/artifacts/TARGET/, and is tried again by
#   cargo +nightly fuzz run TARGET fuzz/artifacts/TARGET/FILE
set -eu
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
seconds=$1
shift
[ $# -gt 0 ] || set -- record s2 crypt meta index mend archive store
cd "$(dirname "$0")/.."
fuzz/seed.sh

# Bytes of input. Enough for several records, chunks, members or changes; time per input grows with it.
ceiling() {
  case $1 in
  record) echo 4096 ;;
  s2) echo 8192 ;;
  crypt) echo 2048 ;;
  meta) echo 4096 ;;
  index) echo 8192 ;;
  mend) echo 4096 ;;
  archive) echo 32768 ;;
  store) echo 97 ;;
  *) echo "no such target: $1" >&2; return 1 ;;
  esac
}
for target; do ceiling "$target" >/dev/null; done

# Stores and archives are written to memory, where the system has such a place.
base=${TMPDIR:-/tmp}
[ ! -d /dev/shm ] || base=/dev/shm
JETSAM_FUZZ_DIR=$(mktemp -d "$base/jetsam-fuzz.XXXXXX")
export JETSAM_FUZZ_DIR
# The stack of every allocation takes a third of the time; the first bad access is shown without it.
ASAN_OPTIONS=malloc_context_size=1:quarantine_size_mb=16
export ASAN_OPTIONS
trap 'rm -rf "$JETSAM_FUZZ_DIR"' EXIT

cargo +nightly fuzz build
for target; do
  echo "== $target"
  cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len="$(ceiling "$target")" \
    -len_control=0 -rss_limit_mb=1024 -timeout=10 -print_final_stats=1
done

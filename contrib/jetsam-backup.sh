#!/bin/sh
# Archives every stream of a stopped server's store directory, proves the archives, and keeps them by date:
#
#   JETSAM_SOURCE       the store directory: of a stopped server, or on a snapshot of its volume
#   JETSAM_BACKUPS      where the backups go: JETSAM_BACKUPS/2026-11-20T030000Z/ACCOUNT/STREAM
#   JETSAM_METRICS      directory of node_exporter's textfile collector (optional)
#   JETSAM_KEY_FILE     the server's encryption key (optional)
#   JETSAM_KEEP_DAYS    backups older than this are removed after one that went well (optional)
#
# Exit status: that of jetsam. 1: damaged streams were left out, the others are there; anything else but 0:
# there is no new backup, and what was made of it is in JETSAM_BACKUPS/new.
set -u

: "${JETSAM_SOURCE:?}" "${JETSAM_BACKUPS:?}"
new=$JETSAM_BACKUPS/new

# The name is the same each time, so that the metrics' labels are.
rm -rf -- "$new" || exit 2

# For a run of this verb: where its metrics go.
metrics() {
    [ -z "${JETSAM_METRICS:-}" ] || printf '%s/jetsam_%s.prom' "$JETSAM_METRICS" "$1"
}

file=$(metrics backup)
jetsam backup --no-progress ${file:+--metrics "$file"} ${JETSAM_KEY_FILE:+--key-file "$JETSAM_KEY_FILE"} \
    "$JETSAM_SOURCE" "$new"
backup=$?
if [ $backup -gt 1 ] || [ ! -d "$new" ]; then
    exit $backup
fi

file=$(metrics check)
jetsam check --no-progress ${file:+--metrics "$file"} "$new"
check=$?
if [ $check -ne 0 ]; then
    exit $check
fi

mv -- "$new" "$JETSAM_BACKUPS/$(date -u +%Y-%m-%dT%H%M%SZ)" || exit 2
if [ $backup -eq 0 ] && [ -n "${JETSAM_KEEP_DAYS:-}" ]; then
    find "$JETSAM_BACKUPS" -mindepth 1 -maxdepth 1 -type d -name '20??-??-??T??????Z' \
        -mtime "+$JETSAM_KEEP_DAYS" -exec rm -rf -- {} + || exit 2
fi
exit $backup

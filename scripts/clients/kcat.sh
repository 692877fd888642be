#!/usr/bin/env bash
# Real text through kcat: what comes out equals what went in, per partition and in order, for every codec.
#
# Usage: kcat.sh BOOTSTRAP [LINES]. Ends with 0 when all codecs pass, 1 when one fails, 77 when kcat is missing.
# Topics are made by asking for them, so the broker must give new topics eight partitions.
set -uo pipefail

bootstrap=$1
count=${2:-200000}
partitions=8
kcat=$(command -v kcat || command -v kafkacat) || exit 77

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Lines "key<TAB>text", split by partition beforehand: kcat then sends each part to its partition.
shopt -s nullglob
changelogs=(/usr/share/doc/*/changelog*.gz)
text() { if ((${#changelogs[@]})); then zcat -- "${changelogs[@]}"; else cat -- "$0"; fi; }
text | tr -d '\t\r\000' | grep . | head -n "$count" >"$work/some"
repeats=$((count / $(wc -l <"$work/some") + 1))
for ((n = 0; n < repeats; n++)); do cat "$work/some"; done | head -n "$count" | awk -v n=$partitions -v to="$work/in." \
    '{ print "key " NR % 1000 "\t" $0 > (to (NR * NR % 1009 % n)) }'

run() {
    local codec=$1 topic p
    topic="kcat-$codec-$$"
    for ((p = 0; p < partitions; p++)); do
        timeout 120 "$kcat" -q -P -b "$bootstrap" -t "$topic" -p $p -K $'\t' -z "$codec" <"$work/in.$p" || return 1
    done
    for ((p = 0; p < partitions; p++)); do
        timeout 120 "$kcat" -q -C -b "$bootstrap" -t "$topic" -p $p -o beginning -e -f '%k\t%s\n' >"$work/out" || return 1
        cmp "$work/in.$p" "$work/out" || return 1
        timeout 120 "$kcat" -q -C -b "$bootstrap" -t "$topic" -p $p -o beginning -e -f '%o\n' >"$work/offsets" || return 1
        seq 0 $(($(wc -l <"$work/in.$p") - 1)) | cmp - "$work/offsets" || return 1
    done
}

failed=0
for codec in none gzip snappy lz4 zstd; do
    if words=$(run "$codec" 2>&1); then
        echo "PASS kcat.sh $codec: $count lines over $partitions partitions"
    else
        echo "FAIL kcat.sh $codec: $words"
        failed=1
    fi
done
exit $failed

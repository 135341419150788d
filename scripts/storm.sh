#!/usr/bin/env bash
# storm.sh N: N storms (tests/it/storm.rs) with seeds from SEED on (default: a random one), as many
# at a time as JOBS says (default: one for each core). Ends with `N passed, M failed`, and tells
# where a failed one has left its outputs, its request log and its ledger.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages postgres pgbouncer cc openssl script pkill
need_cargo
cd "$ROOT"

seeds=${1:?how many storms?}
[[ $seeds =~ ^[0-9]+$ ]] || die "how many storms? A number, not $seeds"
first=${SEED:-$((RANDOM * 32768 + RANDOM))}
jobs=${JOBS:-$(nproc)}

binary=$(cargo test --locked --test it --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p' | tail -n 1)
[[ -x $binary ]] || die "the tests were not built"

log=$(mktemp "${TMPDIR:-/tmp}/dify-sls-backfill-storm-XXXXXX")
trap 'rm -f "$log"' EXIT
# So few at a time that the seeds spread, so many that a cluster is worth its start.
each=8
for ((at = 0; at < seeds; at += each)); do
    left=$((seeds - at))
    printf '%s %s\n' "$((first + at))" "$((left < each ? left : each))"
done | xargs -P "$jobs" -L 1 sh -c '
    STORM_SEED=$2 STORM_SEEDS=$3 "$1" --exact storm::a_storm_loses_and_doubles_nothing \
        --nocapture 2>&1 | grep --line-buffered -o "storm [0-9]*: .*" || true
' storm "$binary" | tee "$log" || true

passed=$(grep -c ': passed' "$log" || true)
printf '%s passed, %s failed\n' "$passed" "$((seeds - passed))"
((passed == seeds))

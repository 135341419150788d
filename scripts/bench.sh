#!/usr/bin/env bash
# Measures how fast node executions go from Postgres to (simulated) SLS, against two marks on the
# same machine and the same data: Postgres's own COPY in the same order, the most that can be read;
# and the vendor's Python SDK in a loop, what one would write by hand.
#
# Then what a run has stored is verified and purged: `verify --level content` against that run (both
# send or pull every log, and read every row), and `purge --execute`, proofs included, against a bare
# DELETE of the same rows by their ids, 1,000 a transaction. Each is measured three times, in turn;
# the median counts. The rows are copied back in between.
#
# PART=quota measures something else: which part of the quotas of 2 and of 8 shards (QUOTA_SHARDS) a run
# uses, and which part of its requests is refused. A shard takes QUOTA_KIB (5120) KiB a second and 500
# writes. A run is stopped after QUOTA_S (40) seconds, and for 8 shards needs more ROWS than usual: 500000.
#
# ROWS (300000) is the size of the table, SDK_ROWS (60000) what the slow loop gets of it, PART (all)
# `all`, `verify-purge` for the second half alone, or `quota`, TIMES (3) how often to measure, TOOL a
# binary that is built already. MB are those of COPY's binary output, for everybody. All takes about
# fifteen minutes and 6 GB of disk. The last line is all of it as JSON.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
ROWS=${ROWS:-300000}
SDK_ROWS=${SDK_ROWS:-60000}
PART=${PART:-all}
TIMES=${TIMES:-3}
QUOTA_KIB=${QUOTA_KIB:-5120}
QUOTA_S=${QUOTA_S:-40}
QUOTA_SHARDS=${QUOTA_SHARDS:-2 8}
need_packages postgres cc python time
need_cargo
tool=${TOOL:-$(build_release)}

dir=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-bench-XXXXXX")
work=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-bench-XXXXXX")
simulator=

stop_simulator() {
    [[ -n $simulator ]] || return 0
    kill "$simulator" 2>/dev/null || true
    wait "$simulator" 2>/dev/null || true
    simulator=
}

clean_up() {
    local code=$?
    stop_simulator
    stop_postgres "$dir"
    if ((code != 0)) && [[ -s $work/log ]]; then
        printf 'The last lines of what the tool said:\n' >&2
        tail -n 20 "$work/log" >&2
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() {
    printf '== %s\n' "$*" >&2
}

sql() {
    "$(find_pg_bin)/psql" -X -q -A -t -v ON_ERROR_STOP=1 -c "$1"
}

# seconds COMMAND...: prints how long it takes.
seconds() {
    local begin=$EPOCHREALTIME
    "$@" >/dev/null
    awk -v begin="$begin" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.3f", end - begin }'
}

# The SELECT that gives all node rows in the order of a key.
select_in_order() {
    case $1 in
    by-run)
        printf '%s' "SELECT n.* FROM workflow_runs r JOIN workflow_node_executions n" \
            " ON n.workflow_run_id = r.id ORDER BY r.created_at, r.id, n.id"
        ;;
    walk) printf '%s' "SELECT n.* FROM workflow_node_executions n ORDER BY n.id" ;;
    time) printf '%s' "SELECT n.* FROM workflow_node_executions n ORDER BY n.created_at, n.id" ;;
    esac
}

copy_out() {
    sql "COPY ($1) TO STDOUT (FORMAT binary)"
}

# copy_seconds SELECT: the second of two runs, of the faster of two plans: the planner's choice, and
# the indexes in key order.
copy_seconds() {
    local by_index="-c enable_seqscan=off -c enable_sort=off -c enable_hashjoin=off"
    local options best=
    for options in "" "$by_index -c enable_mergejoin=off"; do
        local took
        PGOPTIONS=$options copy_out "$1" >/dev/null
        took=$(PGOPTIONS=$options seconds copy_out "$1")
        best=$(awk -v a="${best:-$took}" -v b="$took" 'BEGIN { print (a < b) ? a : b }')
    done
    printf '%s' "$best"
}

# start_simulator [ARGUMENT...]: `--count-only` counts what it gets and keeps nothing, so that its memory
# does not matter.
start_simulator() {
    stop_simulator
    export ALIYUN_SLS_REGION=cn-hangzhou ALIYUN_SLS_PROJECT_NAME=dify-logs
    export ALIYUN_SLS_ACCESS_KEY_ID=simulator ALIYUN_SLS_ACCESS_KEY_SECRET=simulator-secret
    : >"$work/simulator"
    "$tool" simulate --listen 127.0.0.1:0 "$@" >"$work/simulator" 2>>"$work/log" &
    simulator=$!
    local line="" attempt
    for ((attempt = 0; attempt < 200; attempt++)); do
        line=$(head -n 1 "$work/simulator")
        [[ $line == "listening on "* ]] && break
        kill -0 "$simulator" 2>/dev/null || die "the simulator has ended"
        sleep 0.05
    done
    [[ $line == "listening on "* ]] || die "the simulator does not answer"
    export ALIYUN_SLS_ENDPOINT=http://${line#listening on }
    sql "DROP SCHEMA IF EXISTS sls_backfill CASCADE" 2>>"$work/log"
    "$tool" init >>"$work/log" 2>&1
}

# One field of what /usr/bin/time -v wrote.
time_field() {
    awk -F ': ' -v name="$1" 'index($0, name) { print $2 }' "$work/time"
}

table=()
# Members of the JSON object at the end.
as_json=()

measure() {
    local order=$1 bytes copy_s run_s cpu_s rss_kb
    say "$order: COPY"
    bytes=$(copy_out "$(select_in_order "$order")" | wc -c)
    copy_s=$(copy_seconds "$(select_in_order "$order")")
    say "$order: run"
    start_simulator --count-only
    run_s=$(seconds /usr/bin/time -v -o "$work/time" "$tool" run \
        --tables workflow_node_executions --key-order "$order" --verify none 2>>"$work/log")
    stop_simulator
    cpu_s=$(awk -v user="$(time_field 'User time')" -v kernel="$(time_field 'System time')" \
        'BEGIN { print user + kernel }')
    rss_kb=$(time_field 'Maximum resident set size')
    table+=("$(awk -v order="$order" -v mb="$((bytes / 1000))e-3" -v copy="$copy_s" \
        -v run="$run_s" -v cpu="$cpu_s" -v rss="$rss_kb" -v sdk="$sdk_mb_per_s" 'BEGIN {
            printf "%s|%.0f|%.0f|%.2f|%.2f|%.0f|%.1f|%.1f", order, mb / copy, mb / run,
                copy / run, cpu / mb * 1000, rss / 1024, sdk, mb / run / sdk
        }')")
    as_json+=("$(awk -v order="$order" -v mb="$((bytes / 1000))e-3" -v copy="$copy_s" -v run="$run_s" 'BEGIN {
        printf "\"%s\":{\"copy_mb_per_s\":%.1f,\"run_mb_per_s\":%.1f,\"run_of_copy\":%.2f}", order,
            mb / copy, mb / run, copy / run
    }')")
}

measure_sdk() {
    local venv=${XDG_CACHE_HOME:-$HOME/.cache}/dify-sls-backfill/venv bytes took
    if ! "$venv/bin/python" -c 'import aliyun.log, psycopg2' 2>/dev/null; then
        say "installing the vendor's SDK into $venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q aliyun-log-python-sdk==0.9.52 psycopg2-binary >&2
    fi
    say "the vendor's SDK: $SDK_ROWS rows"
    bytes=$(copy_out "SELECT * FROM workflow_node_executions LIMIT $SDK_ROWS" | wc -c)
    start_simulator --count-only
    took=$("$venv/bin/python" "$ROOT/scripts/bench/sdk_loop.py" "$SDK_ROWS")
    stop_simulator
    sdk_mb_per_s=$(awk -v bytes="$bytes" -v took="$took" 'BEGIN { print bytes / 1e6 / took }')
}

# median NUMBER...
median() {
    printf '%s\n' "$@" | sort -g | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'
}

# largest NUMBER...
largest() {
    printf '%s\n' "$@" | sort -g | tail -n 1
}

# per_row SECONDS DONE ALL: how long ALL rows would take; a purge leaves some where they are.
per_row() {
    awk -v seconds="$1" -v done="$2" -v all="$3" 'BEGIN { printf "%.3f", seconds * all / done }'
}

# Runs the tool on node executions; prints how long it takes.
tool_seconds() {
    seconds /usr/bin/time -v -o "$work/time" "$tool" "$@" --tables workflow_node_executions \
        2>>"$work/log"
}

# Deletes the rows that a purge would, as a script without proofs would do it: by primary key, 1,000
# at a time, each a transaction; prints how long it takes.
delete_seconds() {
    sql "DROP TABLE IF EXISTS bench_ids; CREATE TABLE bench_ids AS
        SELECT n / 1000 AS part, array_agg(id) AS ids FROM
            (SELECT id, row_number() OVER (ORDER BY created_at) AS n FROM workflow_node_executions
            WHERE finished_at < now() AT TIME ZONE 'UTC' - interval '2 hours') s GROUP BY 1;
        DROP PROCEDURE IF EXISTS bench_delete;
        CREATE PROCEDURE bench_delete() LANGUAGE plpgsql AS \$\$ DECLARE doomed uuid[]; BEGIN
            FOR doomed IN SELECT ids FROM bench_ids ORDER BY part LOOP
                DELETE FROM workflow_node_executions WHERE id = ANY(doomed); COMMIT;
            END LOOP; END \$\$;
        CHECKPOINT" >/dev/null 2>>"$work/log"
    seconds sql "CALL bench_delete()"
}

# What was deleted comes back, and is vacuumed, so that each turn finds the same table.
copy_back() {
    sql "VACUUM workflow_node_executions"
    sql "INSERT INTO workflow_node_executions SELECT * FROM bench_copy ON CONFLICT DO NOTHING"
    sql "VACUUM ANALYZE workflow_node_executions"
    sql "CHECKPOINT"
}

# Runs that store, verifications and purges of what they stored, and bare DELETEs, in turn.
measure_verify_and_purge() {
    local turn runs=() verifies=() purges=() deletes=() rss=0 purge_rss=0 bytes rows purged
    bytes=$(copy_out "SELECT * FROM workflow_node_executions" | wc -c)
    rows=$(sql "SELECT count(*) FROM workflow_node_executions
        WHERE finished_at < now() AT TIME ZONE 'UTC' - interval '2 hours'")
    sql "CREATE TABLE bench_copy AS SELECT * FROM workflow_node_executions"
    for ((turn = 1; turn <= TIMES; turn++)); do
        say "stored, turn $turn of $TIMES: run, verify, purge, DELETE"
        start_simulator --shards 2
        "$tool" run --tables workflow_runs --verify none >>"$work/log" 2>&1
        runs+=("$(tool_seconds run --key-order by-run --verify none)")
        verifies+=("$(tool_seconds verify --level content)")
        rss=$(largest "$rss" "$(time_field 'Maximum resident set size')")
        purges+=("$(tool_seconds purge --older-than 2h --execute --yes)")
        purge_rss=$(largest "$purge_rss" "$(time_field 'Maximum resident set size')")
        purged=$(sql "SELECT sum(purged_rows) FROM sls_backfill.batch")
        copy_back
        deletes+=("$(delete_seconds)")
        copy_back
        stop_simulator
    done
    local run_s verify_s purge_s delete_s
    run_s=$(median "${runs[@]}") verify_s=$(median "${verifies[@]}")
    purge_s=$(median "${purges[@]}") delete_s=$(median "${deletes[@]}")
    verified=$(awk -v mb="$((bytes / 1000))e-3" -v run="$run_s" -v verify="$verify_s" -v rss="$rss" \
        -v rows="$rows" -v purge="$(per_row "$purge_s" "$purged" "$rows")" -v bare="$delete_s" \
        -v purge_rss="$purge_rss" 'BEGIN {
            printf "%-28s %10s %12s %10s\n", "stored, by-run", "MB/s", "against", "RSS MB"
            printf "%-28s %10.0f %12s\n", "run", mb / run, ""
            printf "%-28s %10.0f %12.2f %10.0f\n", "verify --level content", mb / verify,
                run / verify, rss / 1024
            printf "\n%-28s %10s %12s %10s\n", "purged", "rows/s", "against", "RSS MB"
            printf "%-28s %10.0f %12s\n", "DELETE by id", rows / bare, ""
            printf "%-28s %10.0f %12.2f %10.0f", "purge --execute", rows / purge, bare / purge,
                purge_rss / 1024
        }')
    as_json+=("$(awk -v mb="$((bytes / 1000))e-3" -v run="$run_s" -v verify="$verify_s" -v rss="$rss" \
        -v rows="$rows" -v purge="$(per_row "$purge_s" "$purged" "$rows")" -v bare="$delete_s" 'BEGIN {
            printf "\"stored\":{\"run_mb_per_s\":%.1f,\"verify_mb_per_s\":%.1f,\"verify_of_run\":%.2f,", mb / run,
                mb / verify, run / verify
            printf "\"verify_rss_mb\":%.0f,\"delete_rows_per_s\":%.0f,\"purge_rows_per_s\":%.0f,", rss / 1024,
                rows / bare, rows / purge
            printf "\"purge_of_delete\":%.2f}", bare / purge
        }')")
}

quotas=()

# measure_quota SHARDS: the medians of the parts of the quota that are used, and of the requests that are
# refused.
measure_quota() {
    local shards=$1 bytes_per_s=$((QUOTA_KIB * 1024)) turn figures used_now refused_now
    local used=() refused=()
    for ((turn = 1; turn <= TIMES; turn++)); do
        say "quota of $shards shards, turn $turn of $TIMES"
        start_simulator --count-only --shards "$shards" --switch "shard_bytes_per_s=$bytes_per_s" \
            --switch shard_writes_per_s=500
        figures=$(python3 "$ROOT/scripts/bench/quota.py" "$shards" "$bytes_per_s" "$QUOTA_S" "$tool" \
            run --tables workflow_node_executions --verify none -v 2>>"$work/log")
        say "part of the quota used, part of the requests refused: $figures"
        read -r used_now refused_now <<<"$figures"
        used+=("$used_now") refused+=("$refused_now")
        stop_simulator
    done
    used_now=$(median "${used[@]}") refused_now=$(median "${refused[@]}")
    quotas+=("$(awk -v shards="$shards" -v used="$used_now" -v refused="$refused_now" \
        'BEGIN { printf "%-8s %10.1f %12.2f", shards, 100 * used, 100 * refused }')")
    as_json+=("\"shards_$shards\":{\"used\":$used_now,\"refused\":$refused_now}")
}

measure_quotas() {
    local shards
    for shards in $QUOTA_SHARDS; do
        measure_quota "$shards"
    done
}

port=$(start_postgres "$dir" fsync=on shared_buffers=1GB max_wal_size=8GB \
    checkpoint_timeout=30min)
use_postgres "$port" postgres
say "$ROWS node executions"
"$tool" demo --fill-only --profile bench --rows "$ROWS" --seed 1 >>"$work/log" 2>&1
sql "VACUUM ANALYZE"
# What is written back later must not fall into a measurement.
sql "CHECKPOINT"

if [[ $PART == all ]]; then
    measure_sdk
    measure by-run
    measure walk
fi
if [[ $PART == quota ]]; then
    measure_quotas
else
    measure_verify_and_purge
fi
if [[ $PART == all ]]; then
    say "CREATE INDEX ON workflow_node_executions (created_at, id)"
    sql "CREATE INDEX ON workflow_node_executions (created_at, id)"
    sql "VACUUM ANALYZE workflow_node_executions"
    sql "CHECKPOINT"
    measure time
fi

printf '\n%s rows, %s, %s cores, Postgres %s\n\n' "$ROWS" \
    "$(awk -F ': ' '/model name/ { print $2; exit }' /proc/cpuinfo)" "$(nproc)" \
    "$(sql 'SHOW server_version')"
print_orders() {
    local row='%-8s %10s %10s %10s %10s %10s %10s %10s\n' line fields
    # shellcheck disable=SC2059
    printf "$row" order 'COPY MB/s' 'run MB/s' 'run/COPY' 'CPU s/GB' 'RSS MB' 'SDK MB/s' 'run/SDK'
    for line in "${table[@]}"; do
        IFS='|' read -ra fields <<<"$line"
        # shellcheck disable=SC2059
        printf "$row" "${fields[@]}"
    done
    printf '%s\n' "" \
        "by-run and walk go by the indexes that Dify 1.12 really has; time goes by one on" \
        "(created_at, id) that Dify does not have on this table, and that was added for it." \
        "The SDK got $SDK_ROWS rows in the order they lie in, and converts nothing."
}

if [[ $PART == all ]]; then
    print_orders
fi
if [[ $PART == quota ]]; then
    printf '%-8s %10s %12s\n' shards 'used %' 'refused %'
    printf '%s\n' "${quotas[@]}"
else
    printf '\n%s\n' "$verified"
fi
json=$(printf ',%s' "${as_json[@]}")
printf '\n{"schema_version":1,"rows":%s%s}\n' "$ROWS" "$json"

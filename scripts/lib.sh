# shellcheck shell=bash
# What the scripts share: installs what is missing, and runs throw-away Postgres clusters. To be
# sourced. Postgres refuses to run as root: then all of it runs as the user `postgres`.

# An error inside of $(…) is an error.
shopt -s inherit_errexit

# The repository.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Dify's own defaults, so that its `.env` would fit.
PG_USER=postgres
PG_PASSWORD=difyai123456

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# need_packages PART...: installs what of `postgres`, `pgbouncer`, `cc`, `python`, `time`, `openssl`,
# `script`, `pkill`, `systemd` is not there.
need_packages() {
    local part missing=()
    for part in "$@"; do
        case $part in
        postgres) find_pg_bin >/dev/null || missing+=(postgresql) ;;
        pgbouncer)
            # Debian has it in /usr/sbin, which is not on everybody's PATH.
            [[ -x /usr/sbin/pgbouncer ]] || command -v pgbouncer >/dev/null || missing+=(pgbouncer)
            ;;
        cc) command -v cc >/dev/null || missing+=(gcc libc6-dev) ;;
        python) python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv) ;;
        time) [[ -x /usr/bin/time ]] || missing+=(time) ;;
        openssl) command -v openssl >/dev/null || missing+=(openssl) ;;
        # A terminal for the bars, and how to interrupt what runs in it.
        script) command -v script >/dev/null || missing+=(bsdutils) ;;
        systemd) command -v systemd-analyze >/dev/null || missing+=(systemd) ;;
        pkill) command -v pkill >/dev/null || missing+=(procps) ;;
        *) die "need_packages: $part?" ;;
        esac
    done
    ((${#missing[@]} > 0)) || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "please install, as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    printf '== installing %s\n' "${missing[*]}" >&2
    "${as_root[@]}" apt-get update -q >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
}

need_cargo() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
}

# Builds the release and prints the path of the binary.
build_release() {
    (cd "$ROOT" && cargo build --release --locked >&2)
    local target=${CARGO_TARGET_DIR:-target}
    [[ $target == /* ]] || target=$ROOT/$target
    printf '%s\n' "$target/release/dify-sls-backfill"
}

# Prints the folder with the newest Postgres's initdb, postgres and psql.
find_pg_bin() {
    local folder found=
    while IFS= read -r folder; do
        [[ -x $folder/initdb && -x $folder/postgres ]] && found=$folder
    done < <(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V)
    if [[ -z $found ]]; then
        found=$(command -v initdb) || return 1
        found=$(dirname "$found")
    fi
    printf '%s\n' "$found"
}

as_postgres() {
    if ((EUID == 0)); then
        (cd / && runuser -u postgres -- "$@")
    else
        "$@"
    fi
}

# start_postgres DIR [NAME=VALUE...]: makes a cluster in DIR, which must be there and empty, with
# these settings, and prints the port on 127.0.0.1 where it answers.
start_postgres() {
    local dir=$1 bin port settings="" setting attempt
    shift
    bin=$(find_pg_bin)
    for setting in "$@"; do
        settings+=" -c $setting"
    done
    printf '%s' "$PG_PASSWORD" >"$dir/password"
    if ((EUID == 0)); then
        chown -R postgres "$dir"
    fi
    as_postgres "$bin/initdb" -D "$dir/data" -U "$PG_USER" -E UTF8 --locale=C \
        --auth=scram-sha-256 --pwfile="$dir/password" --no-sync >"$dir/initdb.log" 2>&1 ||
        die "initdb: $(cat "$dir/initdb.log")"
    # Nobody keeps a port free until Postgres takes it: try a few.
    for attempt in 1 2 3 4 5; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 40000))
        if as_postgres "$bin/pg_ctl" -w -s -D "$dir/data" -l "$dir/log" -o \
            "-p $port -k $dir -c listen_addresses=127.0.0.1$settings" start >&2; then
            printf '%s\n' "$port"
            return 0
        fi
        printf 'Postgres did not start on port %s (attempt %s)\n' "$port" "$attempt" >&2
    done
    die "Postgres does not start: $(cat "$dir/log")"
}

# stop_postgres DIR: stops the cluster, if it runs, and deletes DIR.
stop_postgres() {
    local dir=$1 bin
    if [[ -f $dir/data/postmaster.pid ]]; then
        bin=$(find_pg_bin)
        as_postgres "$bin/pg_ctl" -s -D "$dir/data" -m immediate stop >&2 || true
    fi
    rm -rf "$dir"
}

# use_postgres PORT DATABASE: points the tool, and psql, at that database.
use_postgres() {
    export DB_TYPE=postgresql DB_HOST=127.0.0.1 DB_PORT=$1 DB_DATABASE=$2
    export DB_USERNAME=$PG_USER DB_PASSWORD=$PG_PASSWORD
    export PGHOST=127.0.0.1 PGPORT=$1 PGDATABASE=$2 PGUSER=$PG_USER PGPASSWORD=$PG_PASSWORD
    unset DATABASE_URL
}

# start_local_sls WORK: starts the local SLS of the debug build, with its outputs in the folder WORK;
# sets SIM_PID and SIM_ENDPOINT.
start_local_sls() {
    local work=$1 target=${CARGO_TARGET_DIR:-$ROOT/target} line="" attempt
    # As the tests are built, so that nothing is built twice.
    (cd "$ROOT" && cargo build --locked --bins --tests >&2)
    export ALIYUN_SLS_ACCESS_KEY_ID=simulator ALIYUN_SLS_ACCESS_KEY_SECRET=simulator-secret
    # The background process makes it only when it runs.
    : >"$work/out"
    "$target/debug/dify-sls-backfill" simulate --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" &
    SIM_PID=$!
    for ((attempt = 0; attempt < 600; attempt++)); do
        line=$(head -n 1 "$work/out")
        [[ $line == "listening on "* ]] && break
        kill -0 "$SIM_PID" 2>/dev/null || die "the local SLS has ended: $(cat "$work/err")"
        sleep 0.05
    done
    [[ $line == "listening on "* ]] || die "the local SLS does not answer"
    export SIM_ENDPOINT=http://${line#listening on }
}

# stop_local_sls WORK CODE: ends it, shows its log if CODE is not 0, and deletes WORK.
stop_local_sls() {
    if [[ -n ${SIM_PID:-} ]]; then
        kill "$SIM_PID" 2>/dev/null || true
        wait "$SIM_PID" 2>/dev/null || true
    fi
    (($2 == 0)) || cat "$1/err" >&2 || true
    rm -rf "$1"
}

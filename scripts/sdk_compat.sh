#!/usr/bin/env bash
# Lets the vendor's Python SDK talk to the local SLS, and fails on the first difference.
#
# It starts the local SLS of the debug build itself. The SDK lives in a venv of its own (SDK_VENV),
# made when it is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages cc python
need_cargo

# The vendor's SDK takes zstd from a package that it does not install.
venv=${SDK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/dify-sls-backfill/venv-sdk}
if ! "$venv/bin/python" -c 'import aliyun.log, zstd' 2>/dev/null; then
    printf "== installing the vendor's SDK into %s\n" "$venv" >&2
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet aliyun-log-python-sdk==0.9.52 zstd==1.5.7.2 >&2
fi

cd "$ROOT"
# As the tests are built, so that nothing is built twice.
cargo build --locked --bins --tests
target=${CARGO_TARGET_DIR:-target}
export ALIYUN_SLS_ACCESS_KEY_ID=simulator ALIYUN_SLS_ACCESS_KEY_SECRET=simulator-secret
work=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-sdk-XXXXXX")
"$target/debug/dify-sls-backfill" simulate --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" &
simulator=$!

clean_up() {
    local code=$?
    kill "$simulator" 2>/dev/null || true
    wait "$simulator" 2>/dev/null || true
    ((code == 0)) || cat "$work/err" >&2
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

line=
for ((attempt = 0; attempt < 200; attempt++)); do
    line=$(head -n 1 "$work/out")
    [[ $line == "listening on "* ]] && break
    kill -0 "$simulator" 2>/dev/null || die "the local SLS has ended"
    sleep 0.05
done
[[ $line == "listening on "* ]] || die "the local SLS does not answer"
SIM_ENDPOINT=http://${line#listening on } "$venv/bin/python" scripts/sdk_compat.py

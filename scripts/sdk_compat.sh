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

work=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-sdk-XXXXXX")
trap 'stop_local_sls "$work" $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
start_local_sls "$work"
for part in sdk_compat sdk_query; do
    PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$ROOT/scripts/$part.py"
done

#!/bin/sh
# Lets the vendor's Python SDK talk to a running local SLS, and fails on the first difference.
#
#   dify-sls-backfill simulate --listen 127.0.0.1:8080 &
#   SIM_ENDPOINT=http://127.0.0.1:8080 ALIYUN_SLS_ACCESS_KEY_ID=… ALIYUN_SLS_ACCESS_KEY_SECRET=… \
#       scripts/sdk_compat.sh
#
# The SDK lives in a venv of its own (SDK_VENV), made when it is missing.
set -eu

: "${SIM_ENDPOINT:?where the local SLS listens, as http://127.0.0.1:8080}"
: "${ALIYUN_SLS_ACCESS_KEY_ID:?the access key id that the local SLS knows}"
: "${ALIYUN_SLS_ACCESS_KEY_SECRET:?its secret}"

sdk=aliyun-log-python-sdk==0.9.52
venv=${SDK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/dify-sls-backfill/venv}

if ! "$venv/bin/python" -c 'import aliyun.log' 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "$sdk"
fi
for part in sdk_compat sdk_query; do
    PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$(dirname "$0")/$part.py"
done

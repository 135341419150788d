#!/usr/bin/env bash
# The guided tour on this machine: builds the tool, starts a throw-away Postgres, shows everything,
# and leaves nothing behind. Arguments go to `dify-sls-backfill demo`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages postgres cc
need_cargo
tool=$(build_release)

dir=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-demo-XXXXXX")
trap 'stop_postgres "$dir"' EXIT
# The tool hears Ctrl-C too and ends first; then this script leaves through the trap above.
trap 'exit 130' INT
trap 'exit 143' TERM HUP
port=$(start_postgres "$dir" fsync=on)
use_postgres "$port" postgres

"$tool" demo "$@"

#!/usr/bin/env bash
# Installs what the tests need, then runs all checks.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages postgres pgbouncer cc python openssl script pkill systemd
exec "$ROOT/scripts/check.sh"

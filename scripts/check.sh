#!/usr/bin/env bash
# The one list of checks. Everything it needs must be installed: scripts/test.sh sees to that.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
need_cargo

check() {
    printf '\n== %s\n' "$*"
    "$@"
}

if command -v shellcheck >/dev/null; then
    check shellcheck --external-sources scripts/*.sh .ci/run
fi
check cargo fmt --check
check cargo clippy --all-targets --locked -- -D warnings
check cargo clippy --no-default-features --lib --bins --locked -- -D warnings
check env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --locked
check scripts/deny.sh
check cargo test --locked
check scripts/sdk_compat.sh
printf '\nAll checks passed.\n'

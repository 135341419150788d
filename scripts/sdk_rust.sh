#!/usr/bin/env bash
# Lets the vendor's Rust SDK talk to the local SLS, on demand: it is a crate of its own, since it
# needs OpenSSL (libssl-dev, pkg-config) and two hundred packages that we do not.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages cc
need_cargo

work=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-sdk-XXXXXX")
trap 'stop_local_sls "$work" $?' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
start_local_sls "$work"
cd "$ROOT/scripts/sdk_rust"
sdk_target=${CARGO_TARGET_DIR:-$ROOT/target}/sdk_rust
cargo build --locked --target-dir "$sdk_target"
# The only way to a local address that this SDK leaves open.
HTTP_PROXY=$SIM_ENDPOINT "$sdk_target/debug/sdk-rust"

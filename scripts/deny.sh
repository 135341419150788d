#!/usr/bin/env bash
# Checks what the crate stands on: licences, versions that stand twice and where crates come from
# (deny.toml), and known weaknesses where the list of them can be had.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
need_cargo

VERSION=0.20.2
tools=${CARGO_TARGET_DIR:-$ROOT/target}/tools
deny=$tools/bin/cargo-deny

if [[ $("$deny" --version 2>/dev/null) != "cargo-deny $VERSION" ]]; then
    # A debug build takes a third of the time, and a second to check.
    cargo install --quiet --debug --locked --no-default-features --root "$tools" \
        "cargo-deny@$VERSION"
fi
"$deny" --locked check licenses bans sources
if timeout 60 "$deny" --locked fetch db >/dev/null 2>&1; then
    "$deny" --locked check --disable-fetch advisories
else
    printf 'known weaknesses were not looked for: their list cannot be fetched from here\n'
fi

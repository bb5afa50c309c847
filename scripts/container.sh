#!/usr/bin/env bash
# A bundle → an image that serves it: scripts/container.sh BUNDLE [cpu|gpu] [docker|podman|buildah]
# `make container BUNDLE=…` calls it. BASE_IMAGE names another image with python3 than the one in bentofile.yaml, and
# NETWORK the network to install from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

usage='usage: scripts/container.sh BUNDLE [cpu|gpu] [docker|podman|buildah], for example: make container BUNDLE=demo/bundle'
bundle=${1:?$usage}
variant=${2:-cpu}
backend=${3:-docker}
case "$variant" in cpu | gpu) ;; *) echo "error: '$variant' is no variant; $usage" >&2; exit 2 ;; esac
command -v "$backend" >/dev/null || { echo "error: '$backend' is not installed; $usage" >&2; exit 2; }

# BentoML asks for a format without health checks of podman and buildah unless told otherwise.
export BUILDAH_FORMAT=docker BENTOML_DO_NOT_TRACK=true
PROTOSERVE_MODEL=$(protoserve publish "$bundle" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["tag"])')
export PROTOSERVE_MODEL
unset PROTOSERVE_BUNDLE
bento=$(bentoml build --output tag | sed -n 's/^__tag__://p')

options=(--opt "build-arg=VARIANT=$variant")
if [ -n "${BASE_IMAGE:-}" ]; then options+=(--opt "build-arg=BASE_IMAGE=$BASE_IMAGE"); fi
if [ -n "${NETWORK:-}" ]; then options+=(--opt "network=$NETWORK"); fi
# It reads our Dockerfile's template from a copy in a temporary folder, and refuses files that are not below where it runs.
cd "${TMPDIR:-/tmp}"
bentoml containerize "$bento" --backend "$backend" \
    --image-tag "protoserve:$variant" --image-tag "protoserve:${bento#*:}-$variant" "${options[@]}"
echo "protoserve:$variant and protoserve:${bento#*:}-$variant hold $PROTOSERVE_MODEL"

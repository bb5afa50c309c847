#!/usr/bin/env bash
# Build an image that serves a bundle: scripts/container.sh BUNDLE [cpu|gpu] [docker|podman|buildah]
# `make container BUNDLE=…` calls it. BASE_IMAGE replaces the base image of bentofile.yaml by another with
# python3, and NETWORK names the network to install from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

usage='usage: scripts/container.sh BUNDLE [cpu|gpu] [docker|podman|buildah], for example: make container BUNDLE=demo/bundle'
bundle=${1:?$usage}
variant=${2:-cpu}
backend=${3:-docker}
case "$variant" in cpu | gpu) ;; *) echo "error: '$variant' is not a variant; $usage" >&2; exit 2 ;; esac
command -v "$backend" >/dev/null || { echo "error: '$backend' is not installed; $usage" >&2; exit 2; }

# By default, BentoML has podman and buildah use an image format without health checks.
export BUILDAH_FORMAT=docker BENTOML_DO_NOT_TRACK=true
PROTOSERVE_MODEL=$(protoserve publish "$bundle" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["tag"])')
export PROTOSERVE_MODEL
unset PROTOSERVE_BUNDLE
bento=$(bentoml build --output tag | sed -n 's/^__tag__://p')

options=(--opt "build-arg=VARIANT=$variant")
if [ -n "${BASE_IMAGE:-}" ]; then options+=(--opt "build-arg=BASE_IMAGE=$BASE_IMAGE"); fi
if [ -n "${NETWORK:-}" ]; then options+=(--opt "network=$NETWORK"); fi
# BentoML reads the Dockerfile template from a copy in a temporary folder and refuses files outside the working folder.
cd "${TMPDIR:-/tmp}"
bentoml containerize "$bento" --backend "$backend" \
    --image-tag "protoserve:$variant" --image-tag "protoserve:${bento#*:}-$variant" "${options[@]}"
echo "protoserve:$variant and protoserve:${bento#*:}-$variant hold $PROTOSERVE_MODEL"

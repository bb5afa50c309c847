#!/usr/bin/env bash
# Build an image with Debian's python3, for machines that reach Debian's packages but no registry of images:
# scripts/container_base.sh NAME [ROOTFS], then make container BASE_IMAGE=NAME BACKEND=buildah. It copies this machine's certificates, so
# use images built on it for tests only. Needs root, buildah and debootstrap.
set -euo pipefail
name=${1:?usage: scripts/container_base.sh NAME [ROOTFS]}
root=${2:-}
if [ -z "$root" ]; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    # The mirror that this machine uses.
    mirror=$(grep -rhoE '(^deb |^URIs: ).*' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | grep -oE 'https?://[^ ]+' | head -n 1)
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" "${mirror:-http://deb.debian.org/debian}"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
fi
container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah add --quiet "$container" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
buildah config --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$container"
buildah commit --quiet --rm "$container" "$name"

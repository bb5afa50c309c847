#!/usr/bin/env bash
# Makes protoserve/demo, the bundle that comes with the package, from the run and the data that `make demo` leaves.
#
# Environment: DEMO is the folder in which `make demo` worked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

demo=${DEMO:-demo}
draft=$demo/packaged
if [[ ! -f $demo/run/model.pt ]]; then
    echo "error: $demo/run is not a finished run; make it with 'make demo'" >&2
    exit 2
fi

protoserve export "$demo/run" --to onnx --bundle "$draft" --name demo --samples 6 --overwrite
echo "auditing on 100 pictures: some minutes"
protoserve audit "$draft" --data "$demo/data" --write >/dev/null
# Beside its place first, so that an interruption leaves no half bundle in the package.
rm -rf protoserve/.demo
cp -R "$draft" protoserve/.demo
rm -rf protoserve/demo
mv protoserve/.demo protoserve/demo
protoserve inspect protoserve/demo
du -sh protoserve/demo

#!/usr/bin/env bash
# Print the modules that a job needs on a machine without a shared disk; condor_submit reads this output.
# With the argument "container", the job takes its Python from an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" != container ] && [ ! -e condor/python.tar.gz ]; then
  echo "error : condor/python.tar.gz is missing; make it with: .venv/bin/python condor/pack.py"
fi
echo "modules = $(echo *.py | tr ' ' ,),mpn_rl"

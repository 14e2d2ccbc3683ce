#!/usr/bin/env bash
# What a job brings along where it finds no shared disk: condor_submit reads the line that this prints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -e condor/python.tar.gz ]; then
  echo "error : no condor/python.tar.gz to bring along; make it with: .venv/bin/python condor/pack.py"
fi
echo "modules = $(echo *.py | tr ' ' ,),mpn_rl"

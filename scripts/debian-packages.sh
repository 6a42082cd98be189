#!/bin/bash
# Make sure of what pip cannot bring: Python's venv module and its headers, which Debian packages
# apart, and a C++ compiler. The quality measures ViSQOL and PESQ are built with the latter two.
set -euo pipefail
python=$1

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' ||
    missing+=(python3-dev)
command -v c++ >/dev/null || missing+=(g++)
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
else
    echo "please install first: ${missing[*]} (on Debian: sudo apt-get install ${missing[*]})" >&2
    exit 1
fi

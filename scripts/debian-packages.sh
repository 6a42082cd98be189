#!/bin/bash
# Make sure of the two things that pip cannot bring: Python's venv module, which Debian packages
# apart, and a C++ compiler, which the quality measure ViSQOL is built with.
set -euo pipefail
python=$1

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
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

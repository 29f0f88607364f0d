#!/bin/sh
# What the tests need beside Python packages: the venv module, and a C compiler for stand-ins of driver
# libraries. Installs them on Debian when root; otherwise says what is missing.
set -eu
python=${PYTHON3:-python3}

missing=""
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3 python3-venv"
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed, and only root on Debian can have it done:$missing" >&2
  # without a compiler some tests cannot run and say so; without venv nothing can
  case "$missing" in *venv*) exit 1 ;; *) exit 0 ;; esac
fi
apt-get update -qq
# shellcheck disable=SC2086  # a list of package names
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing

#!/bin/sh
# What the tests need beside Python packages: the venv module, a C compiler for stand-ins of driver libraries
# and, for the tests that only root can run, a FUSE file system that can hang, mkfs, a journal daemon, a Slurm,
# a simulated InfiniBand fabric with its subnet manager and tools, a simulated BMC, a time service, a browser,
# sudo's own checker of its rules and an Alertmanager.
# Installs them on Debian when root; otherwise says what is missing.
set -eu
python=${PYTHON3:-python3}

missing=""
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3 python3-venv"
command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if [ "$(id -u)" -eq 0 ]; then
  command -v bindfs >/dev/null 2>&1 || missing="$missing bindfs fuse3"
  command -v mkfs.ext4 >/dev/null 2>&1 || missing="$missing e2fsprogs"
  command -v unshare >/dev/null 2>&1 || missing="$missing util-linux"
  [ -x /lib/systemd/systemd-journald ] || missing="$missing systemd"
  command -v slurmctld >/dev/null 2>&1 || missing="$missing slurm-wlm munge"
  command -v tini >/dev/null 2>&1 || missing="$missing tini"
  command -v ibsim >/dev/null 2>&1 || missing="$missing ibsim-utils libumad2sim0"
  command -v opensm >/dev/null 2>&1 || missing="$missing opensm"
  command -v iblinkinfo >/dev/null 2>&1 || missing="$missing infiniband-diags"
  command -v ipmi_sim >/dev/null 2>&1 || missing="$missing openipmi"
  command -v ipmitool >/dev/null 2>&1 || missing="$missing ipmitool"
  command -v chronyd >/dev/null 2>&1 || missing="$missing chrony"
  command -v ethtool >/dev/null 2>&1 || missing="$missing ethtool"
  [ -x /usr/sbin/sshd ] || missing="$missing openssh-server openssh-client"
  command -v ip >/dev/null 2>&1 || missing="$missing iproute2"
  command -v chromium >/dev/null 2>&1 || missing="$missing chromium"
  command -v visudo >/dev/null 2>&1 || missing="$missing sudo"
  command -v prometheus-alertmanager >/dev/null 2>&1 || missing="$missing prometheus-alertmanager"
  command -v smartctl >/dev/null 2>&1 || missing="$missing smartmontools"
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed, and only root on Debian can have it done:$missing" >&2
  # without a compiler some tests cannot run and say so; without venv nothing can
  case "$missing" in *venv*) exit 1 ;; *) exit 0 ;; esac
fi
# the tests start what they need themselves: no package's own service, with its own settings, on this machine
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$guard"
  chmod 755 "$guard"
  trap 'rm -f "$guard"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086  # a list of package names
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing

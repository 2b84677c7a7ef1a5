#!/usr/bin/env bash
# Installs the Debian packages that are missing when run as root on Debian or Ubuntu; otherwise prints the command.
# Further packages can be named as arguments. A C++ compiler builds hf-libero's two EGL probes, libglib2.0-0 and libgl1 are
# needed by OpenCV, the rest renders.
set -u
packages="make g++ libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0 $*"

if ! command -v dpkg-query >/dev/null; then
  echo "Not a Debian system: make sure that make, g++, EGL (Mesa or a vendor's), libGL and glib are installed." >&2
  exit 0
fi
missing=""
for package in $packages; do
  # Provides: newer releases renamed some (libglib2.0-0t64), dpkg-query then shows them as provided
  dpkg-query -W -f='${db:Status-Status} ${Package} ${Provides}\n' 2>/dev/null | grep '^installed' | grep -qwF -- "$package" \
    || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
  echo "+ apt-get install -y --no-install-recommends$missing"
  # shellcheck disable=SC2086
  { DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >&2 ||
    echo "Could not install them; going on, multismolvla-doctor will say what is really needed." >&2
else
  echo "Missing system packages. Run:  sudo apt-get install -y --no-install-recommends$missing" >&2
fi

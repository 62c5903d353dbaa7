#!/usr/bin/env bash
# Debian packages that the service tests want. As root on Debian they are installed; elsewhere those tests skip and say so.
set -euo pipefail
wanted=(chromium gromacs postgresql)
missing=()
for package in "${wanted[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed (not root on Debian), tests that need them will be skipped: ${missing[*]}"
  exit 0
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

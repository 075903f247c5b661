#!/usr/bin/env bash
# Installs the programs that tests drive, given as command:package, where that is allowed; else says
# what will be skipped. With CI=true and root a program that cannot be installed is a failure.
set -euo pipefail

has() {
  command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

missing=() packages=()
for pair in "$@"; do
  if ! has "${pair%%:*}"; then
    missing+=("${pair%%:*}")
    packages+=("${pair##*:}")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

root=()
allowed=true
if [ "$(id -u)" -ne 0 ]; then
  root=(sudo -n)
  sudo -n true 2>/dev/null || allowed=false
fi
command -v apt-get >/dev/null || allowed=false

if $allowed; then
  echo "Installing ${packages[*]} for the tests"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  if "${root[@]}" apt-get update -qq >"$log" 2>&1 &&
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
    # Tests start servers of their own: none that came with a package shall keep running.
    for service in postgresql redis-server prometheus; do
      if [[ " ${packages[*]} " == *" $service "* ]]; then
        "${root[@]}" systemctl disable --now "$service" >/dev/null 2>&1 || true
        "${root[@]}" service "$service" stop >/dev/null 2>&1 || true
      fi
    done
  else
    tail -5 "$log" >&2
  fi
  rm -f "$log"
fi

left=()
for command in "${missing[@]}"; do
  has "$command" || left+=("$command")
done
if [ ${#left[@]} -gt 0 ]; then
  echo "Tests that need these programs will be skipped: ${left[*]}" >&2
  if [ "${CI:-}" = true ] && [ "$(id -u)" -eq 0 ]; then
    exit 1
  fi
fi

#!/usr/bin/env bash
# Prints the path of a Python 3.12 (with venv), or says how to get one. Looks at: PATH, pyenv, uv.
set -u
want=$(tr -d '[:space:]' < "$(dirname "$0")/../.python-version")

usable() { # a pyenv shim exists without the version behind it, so ask the program itself
  [ -n "$1" ] && "$1" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$want')" 2>/dev/null
}
offer() { if usable "$1"; then "$1" -c 'import sys; print(sys.executable)'; exit 0; fi; }

offer "$(command -v "python$want" || true)"
if command -v pyenv >/dev/null; then
  for version in $(pyenv versions --bare 2>/dev/null | grep -E "^$want(\.|$)" | sort -rV); do
    offer "$(pyenv root)/versions/$version/bin/python"
  done
fi
command -v uv >/dev/null && offer "$(uv python find "$want" 2>/dev/null || true)"
offer "$(command -v python3 || true)"

{
  echo "No Python $want with venv found (looked at: python$want and python3 on PATH, pyenv, uv). Install one of:"
  echo "  apt-get install -y python$want python$want-venv    # Ubuntu 24.04, or a Debian that has it"
  echo "  uv python install $want"
  echo "  pyenv install $want"
} >&2
exit 1

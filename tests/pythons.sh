#!/usr/bin/env bash
# The unit tests on other Pythons than that of .venv. For each version given (3.12, say) that is installed: an environment
# .venv-<version> with the locked packages, the extension built for it, and the tests; PYTEST_ARGS names others than
# tests/unit. torch is the locked one, from wherever pip is set up to find it; where that is a CUDA build, count on
# 3 GB of downloads and 5 GB of disk a version.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() { # The interpreter of a version: on PATH, or one that pyenv keeps.
  local candidate
  for candidate in "python$1" "$(pyenv root 2>/dev/null || true)/versions/$1".*/bin/python; do
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

tested=()
for version in "$@"; do
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    echo "==> Python $version is not installed: not tested"
    continue
  fi
  environment=.venv-$version
  echo "==> Python $version in $environment"
  test -x "$environment/bin/python" || "$python" -m venv "$environment"
  pip=("$environment/bin/python" -m pip --quiet --disable-pip-version-check install)
  "${pip[@]}" --no-deps --require-hashes -r requirements.lock
  "${pip[@]}" -r requirements-torch.lock
  DISTFORGE_BUILD_NATIVE=1 "${pip[@]}" --no-build-isolation --no-deps --editable .
  "$environment/bin/python" -m pytest -q -m "not gpu and not nightly and not real" \
    ${PYTEST_ARGS:-tests/unit}
  tested+=("$version")
done
echo "==> passed on: ${tested[*]:-no other Python, since none is installed}"

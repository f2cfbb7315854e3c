#!/usr/bin/env bash
# Sets up .venv, or VENV, from nothing on Debian or Ubuntu; run again, it does what is missing.
# Usage: requirements/install.sh [PYTHON [VENV]]     (from the top of the checkout; `make setup`)
set -euo pipefail
python=${1:-python3} venv=${2:-.venv}
packages=(python3 python3-venv python3-dev g++ make pkg-config libopencv-dev libturbojpeg0-dev
          libjpeg-dev zlib1g-dev libwebp-dev libfreetype-dev libzstd1)
lock=requirements/lock.txt

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    line="apt-get install -y --no-install-recommends ${missing[*]}"
    if ((EUID == 0)); then sudo=(); elif sudo -n true 2>/dev/null; then sudo=(sudo); else
        fail "Debian packages are missing; run this, then again what you ran:
  sudo apt-get update && sudo $line"
    fi
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    # shellcheck disable=SC2086
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive ${line/-y/-y -qq} >/dev/null
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: name Python 3.11 or newer, as in make setup PYTHON=python3.12"
[[ -x $venv/bin/pip ]] || "$python" -m venv "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
pip=($venv/bin/python -m pip install --quiet --no-deps)

# The lines of the lock file for some packages, a regular expression of their names.
pick() { awk -v name="^($1)==" '$0 ~ name {on = 1} on {print} on && !/\\$/ {on = 0}' "$lock"; }

# 1. What packages that come as source are built with, so that nothing unpinned is fetched.
pick 'editables|hatchling|packaging|pathspec|pluggy|pybind11|setuptools|trove-classifiers|wheel' >$venv/build.txt
"${pip[@]}" --require-hashes -r $venv/build.txt
# 2. pillow-simd, compiled for this processor; no wheel of it may be kept for another one.
pick pillow-simd >$venv/pillow-simd.txt
cc=cc
if grep -qw avx2 /proc/cpuinfo; then cc="cc -mavx2"; fi
CC=$cc "${pip[@]}" --no-cache-dir --no-build-isolation --no-binary pillow-simd \
    --require-hashes -r $venv/pillow-simd.txt
# 3. Everything else, several gigabytes, by uv, which fetches and unpacks side by side, or by pip
#    where only pip knows the way to the packages; and this project itself.
"${pip[@]}" --require-hashes -r <(pick uv)
everything=(--quiet --no-deps --no-build-isolation --require-hashes -r "$lock")
$venv/bin/uv pip install --python $venv/bin/python "${everything[@]}" ||
    $venv/bin/python -m pip install "${everything[@]}"
"${pip[@]}" --no-build-isolation --editable .

# pillow-simd stands in for pillow, opencv-python-headless for opencv-python; nothing else may lack.
lacking=$($venv/bin/python -m pip check |
    grep -vE 'requires (pillow|opencv-python), which is not installed|^No broken' || :)
[[ -z $lacking ]] || fail "the environment is not consistent:
$lacking"

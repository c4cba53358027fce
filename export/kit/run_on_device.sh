#!/bin/sh
# Installs the edge part of sam2edge beside this script, builds the engine, verifies its masks, measures it, and
# writes one device-report.json to send back. Sets nothing on the device: no power mode, no clocks, no packages of
# the system.
set -eu

usage() {
    cat <<'TEXT'
usage: ./run_on_device.sh [options] [-- options of python -m runtime.device]

  --engine NAME         @ENGINES@ (default: @ENGINE@)
  --python PYTHON       Python 3.10 or newer to make the environment from (default: python3)
  --venv DIR            virtual environment to make or to use again (default: venv, beside this script)
  --offline-wheels DIR  install from these wheels, without a network (README.txt says how to fetch them)
  --cuda X.Y            CUDA of this device (default: what CUDA_HOME, else /usr/local/cuda, says)
  --cuda-library NAME   cuda-python or pycuda (default: pycuda where it is there and cuda-python is not)
  --out FILE            report to write (default: device-report.json, in the current folder)

exit status: 0 done; 2 something is missing, in one line; 3 the masks are not the bundle's, or int8 is not faster than
the baseline
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$(pwd)" "$1" ;;
    esac
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
engine=@ENGINE@ python=python3 venv=$here/venv wheels='' cuda='' library='' out=$(pwd)/device-report.json

while [ $# -gt 0 ]; do
    case $1 in
        --engine | --python | --venv | --offline-wheels | --cuda | --cuda-library | --out)
            [ $# -ge 2 ] || fail "$1: must be given a value, got none; see --help"
            case $1 in
                --engine) engine=$2 ;;
                --python) python=$2 ;;
                --venv) venv=$(absolute "$2") ;;
                --offline-wheels) wheels=$(absolute "$2") ;;
                --cuda) cuda=$2 ;;
                --cuda-library) library=$2 ;;
                --out) out=$(absolute "$2") ;;
            esac
            shift 2
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        *) fail "$1: must be an option of this script, is not; see --help" ;;
    esac
done

# --- what must be there, before anything is made ---

case $library in
    '' | cuda-python | pycuda) ;;
    *) fail "--cuda-library $library: must be cuda-python or pycuda, got $library" ;;
esac
[ -f "$here/requirements-$engine.txt" ] || fail "--engine $engine: must be one of @ENGINES@, got $engine"
[ ! -e "$out" ] || fail "--out $out: must not exist yet, it does; move it away, or give another --out"
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "--offline-wheels $wheels: must be a folder of wheels, is none"

if [ -x "$venv/bin/python" ]; then
    python=$venv/bin/python
else
    command -v "$python" >/dev/null 2>&1 || fail "--python $python: must be a Python, there is none of that name"
    "$python" -I -c 'import venv, ensurepip' 2>/dev/null ||
        fail "python3-venv: must be installed, is not; run: sudo apt install python3-venv"
fi
"$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "--python $python: must be Python 3.10 or newer, got $("$python" -V 2>&1)"

# -I throughout: of the folder this is called from nothing is imported. A dotted name, since any folder cuda is a `cuda`.
has() { "$python" -I -c "import sys, importlib.util as u; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
has_cuda_python() { has cuda.bindings.runtime || has cuda.cudart; }

# The version of this device's CUDA, X.Y: from the toolkit's version.json, else from the folder's name, cuda-12.6.
cuda_home=${CUDA_HOME:-/usr/local/cuda}
find_cuda() {
    if [ -f "$cuda_home/version.json" ]; then
        sed -n '/"cuda" *:/,/}/s/.*"version" *: *"\([0-9]*\.[0-9]*\).*/\1/p' "$cuda_home/version.json"
    else
        readlink -f "$cuda_home" | sed -n 's/.*cuda-\([0-9][0-9]*\.[0-9][0-9]*\)$/\1/p'
    fi
}

more=''
if [ "$engine" = tensorrt ]; then
    has tensorrt ||
        fail "tensorrt: must be installed for $python, is not; run: sudo apt install python3-libnvinfer (part of JetPack)"
    [ -n "$library" ] || has_cuda_python || ! has pycuda || library=pycuda
    if [ "$library" = pycuda ]; then
        has pycuda || fail "pycuda: must be installed for $python, is not; build it (README.txt), or leave --cuda-library out"
        # It runs with the numpy that it was compiled for: that of the system stays, where it is numpy 1.
        if "$python" -I -c 'import sys, numpy; sys.exit(int(numpy.__version__[0]) > 1)' 2>/dev/null; then more='numpy<2'; fi
    elif ! has_cuda_python; then
        [ -n "$cuda" ] || cuda=$(find_cuda)
        [ -n "$cuda" ] || fail "CUDA: must be found in $cuda_home, is not; give its version, as in --cuda 12.6"
        more="cuda-python==$cuda.*"
    fi
fi

# --- the environment; it sees the system's packages, because TensorRT is one of them ---

if [ ! -x "$venv/bin/python" ]; then
    printf 'making %s\n' "$venv" >&2
    "$python" -I -m venv --system-site-packages "$venv"
fi
pip_install() { "$venv/bin/python" -I -m pip --disable-pip-version-check install --quiet "$@"; }

requirements() {
    if [ -n "$wheels" ]; then
        pip_install --no-index --find-links "$wheels" -r "$here/requirements-$engine.txt" ${more:+"$more"}
    else
        pip_install -r "$here/requirements-$engine.txt" ${more:+"$more"}
    fi
}

printf 'installing for %s\n' "$engine" >&2
requirements ||
    fail "requirements-$engine.txt: must install, does not (pip says why above); without a network give --offline-wheels"
pip_install --no-index --no-deps --force-reinstall "$here"/sam2edge_edge-*.whl

# --- build, verify, measure ---

cd "$here"
baseline=''
if [ -d baseline ]; then
    case ' @COMPARES@ ' in
        *" $engine "*) baseline=baseline ;;
        *) printf 'note: %s does not compare with baseline/; the report will hold no speed against it\n' "$engine" >&2 ;;
    esac
fi
exec "$venv/bin/python" -I -m runtime.device --bundle bundle ${baseline:+--baseline "$baseline"} --engine "$engine" \
    ${library:+--cuda-library "$library"} --out "$out" "$@"

# Shared by .ci/run and .ci/full: a Python 3.12, fresh environments, and steps that print their time.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=""
for candidate in "${PYTHON:-}" python3.12 python3 python; do
  if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: no Python 3.12 found; install it, or set PYTHON to its path" >&2
  exit 1
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# What one step has compiled, the next ones read.
export JAX_COMPILATION_CACHE_DIR="$scratch/compiled" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 XDG_CACHE_HOME="$scratch/cache"
if [ -d ../shared/data/tfds ]; then
  TFDS_DATA_DIR=$(cd ../shared/data/tfds && pwd)
  export TFDS_DATA_DIR
fi
if [ -d ../shared/data/goldens ]; then
  VQJAX_GOLDENS=$(cd ../shared/data/goldens && pwd)
  export VQJAX_GOLDENS
fi

# environment NAME CONSTRAINTS REQUIREMENT...: enters an environment; creates it on its first use.
environment() {
  local place=$scratch/$1 constraints=$PWD/$2
  shift 2
  [ -d "$place" ] || "$python" -m venv "$place"
  # shellcheck disable=SC1091
  source "$place/bin/activate"
  pip install --quiet --disable-pip-version-check --constraint "$constraints" "$@"
}

# step NAME COMMAND...: runs a command in its own shell, so that its environment and directory end with it.
step() {
  local name=$1 began=$SECONDS
  shift
  echo "=== $name"
  # Not "if ( ... )": that would switch off -e inside.
  (set -e; "$@")
  echo "=== $name: $((SECONDS - began)) s"
}

lint() {
  environment test constraints.txt -e ".[test]"
  ruff check .
  ruff format --check .
}

# The annotations within the package, and those that its users' programs see.
types() {
  environment test constraints.txt -e ".[test,types]"
  basedpyright
  # Outside of the clone the package is a library, of which type checkers take what it exports and annotates.
  mkdir "$scratch/user"
  cp .ci/typed.py "$scratch/user"
  cd "$scratch/user"
  basedpyright typed.py
}

# The suite, or parts of it: suite CONSTRAINTS ENVIRONMENT PYTEST_ARGUMENT...
suite() {
  environment "$1" "$2" -e ".[test]"
  pytest "${@:3}"
}

# Comparisons with the PyTorch libraries: parity PYTEST_ARGUMENT...
parity() {
  environment parity constraints.txt -e ".[test,parity]"
  # Without them every comparison would be skipped.
  python -c "import torch, vector_quantize_pytorch"
  pytest "$@" tests/parity
  # The recorded outputs of the original modules, where VQJAX_GOLDENS names their directory.
  pytest -k recorded tests/importing tests/models/test_discriminators.py tests/losses/test_adversarial.py
}

# Train, continue, evaluate.
commands() {
  local run=("--workdir=$scratch/run" --config.optimizer.schedule=constant --config.model.width=8
    --config.batch_size=8 --config.tensorboard=false --config.checkpoint_every=3)
  python train.py "${run[@]}" --config.num_steps=6
  python train.py "${run[@]}" --config.num_steps=9
  python eval.py --workdir="$scratch/run" --export_tokens="$scratch/tokens.npz"
}

# The page of an evaluation in a browser: Debian's Chromium, which is installed if it is not there.
page_in_chromium() {
  # Without a program of this name the tests fail, and are not skipped.
  export CHROMIUM=${CHROMIUM:-chromium}
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
  if ! command -v "$CHROMIUM" >/dev/null; then
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium)
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" "${install[@]}"; } >/dev/null || true
  fi
  if ! command -v "$CHROMIUM" >/dev/null; then
    echo "error: no Chromium; install Debian's package chromium, or set CHROMIUM to the program" >&2
    return 1
  fi
  environment test constraints.txt -e ".[test]"
  pytest tests/evaluation/test_page_in_browser.py
}

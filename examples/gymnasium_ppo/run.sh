#!/usr/bin/env bash
# Trains and records, converts, validates, inspects and plots, in a virtual environment that is
# created in the first run. All output goes to output/ in the folder of this script.
#
#   run.sh [STEPS]             PYTHON is the path of the interpreter
set -euo pipefail
cd "$(dirname "$0")"

# A pyenv shim on the PATH may have no Python behind it, so try to run each candidate.
first() {
  for python in "$@"; do
    if "$python" -c '' >/dev/null 2>&1; then echo "$python"; return; fi
  done
}
pyenvs=$(pyenv root 2>/dev/null || true)/versions
python=${PYTHON:-$(first python3.11 python3.12 python3.13 "$pyenvs"/3.1[123]*/bin/python3)}
if [ -z "$python" ]; then
  echo 'kabuki_rlds needs Python 3.11 or newer: set PYTHON=/path/to/python3.11' >&2
  exit 1
fi

# Recreate the environment when its requirements change.
stamp=.venv/installed
if [ ! -f "$stamp" ] || [ -n "$(find requirements.txt ../../setup.cfg ../../constraints.txt -newer "$stamp")" ]; then
  echo '== setting up .venv (only once, a few minutes)'
  "$python" -m venv --clear .venv
  # Install PyTorch first: the other packages could select another version.
  .venv/bin/python -m pip install --disable-pip-version-check --no-compile "$(grep ^torch requirements.txt)"
  .venv/bin/python -m pip install --disable-pip-version-check --no-compile -c ../../constraints.txt -r requirements.txt -e ../..
  touch "$stamp"
fi

rm -rf output
mkdir output
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=
echo '== training PPO on CartPole-v1, recorded while it learns'
if ! .venv/bin/python train.py output/cartpole --steps "${1:-30000}" >output/train.txt 2>&1; then
  tail -20 output/train.txt >&2
  exit 1
fi
tail -1 output/train.txt

for command in 'convert output/cartpole output/cartpole.hdf5' 'validate output/cartpole.hdf5' 'inspect output/cartpole.hdf5'; do
  echo "== kabuki-rlds $command"
  # shellcheck disable=SC2086
  .venv/bin/kabuki-rlds $command
done
echo '== plotting the learning curve'
.venv/bin/python plot.py output/cartpole.hdf5 output/learning_curve.png

#!/usr/bin/env bash
# Trains, converts, validates, inspects and plots, in two virtual environments that are
# created in the first run. All output goes to output/ in the folder of this script.
#
#   run.sh [EPISODES]          PYTHON39 and PYTHON are the paths of the interpreters
set -euo pipefail
cd "$(dirname "$0")"

# A pyenv shim on the PATH may have no Python behind it, so try to run each candidate.
first() {
  for python in "$@"; do
    if "$python" -c '' >/dev/null 2>&1; then echo "$python"; return; fi
  done
}
pyenvs=$(pyenv root 2>/dev/null || true)/versions
acme_python=${PYTHON39:-$(first python3.9 "$pyenvs"/3.9*/bin/python3)}
python=${PYTHON:-$(first python3.11 python3.12 python3.13 "$pyenvs"/3.1[123]*/bin/python3)}
if [ -z "$acme_python" ]; then
  echo 'Acme 0.4.0 needs Python 3.9: set PYTHON39=/path/to/python3.9' >&2
  exit 1
fi
if [ -z "$python" ]; then
  echo 'kabuki_rlds needs Python 3.11 or newer: set PYTHON=/path/to/python3.11' >&2
  exit 1
fi

# Recreate the environment when one of FILES changes.
environment() { # NAME PYTHON FILES PIP-ARGUMENTS...
  local folder=.venv-$1 stamp=.venv-$1/installed
  # shellcheck disable=SC2086
  if [ ! -f "$stamp" ] || [ -n "$(find $3 -newer "$stamp")" ]; then
    echo "== setting up $folder (only once, one or two minutes)"
    "$2" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --disable-pip-version-check --no-compile "${@:4}"
    touch "$stamp"
  fi
}
environment acme "$acme_python" requirements.txt -r requirements.txt
environment kabuki "$python" '../../setup.cfg ../../constraints.txt' -c ../../constraints.txt -e ../.. matplotlib

rm -rf output
mkdir output
echo '== training DQN on Catch, recorded by EnvLogger'
if ! TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= .venv-acme/bin/python train.py output/log --episodes "${1:-300}" >output/train.txt 2>&1; then
  tail -20 output/train.txt >&2
  exit 1
fi

kabuki=.venv-kabuki/bin/kabuki-rlds
for command in 'convert output/log output/catch.hdf5' 'validate output/catch.hdf5' 'inspect output/catch.hdf5'; do
  echo "== kabuki-rlds $command"
  # shellcheck disable=SC2086
  $kabuki $command
done
echo '== plotting the learning curve'
.venv-kabuki/bin/python plot.py output/catch.hdf5 output/learning_curve.png

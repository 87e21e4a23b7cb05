#!/bin/sh
# Installs HPSv3 into an environment of its own and serves it: hpsv3.sh FOLDER [PORT]. Not run by us.
set -eu
env=${1:?name the folder of the environment}
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e "$env/.ready" ]; then
  python3.11 -m venv "$env"
  # hpsv3 demands transformers 4.45.2; trl and peft are held to their releases of that time. The last three are
  # imported and not declared.
  "$env/bin/pip" install hpsv3==1.0.0 "trl<0.13" "peft<0.14" "numpy<2" matplotlib pandas tensorboard
  "$env/bin/pip" install "$here/../..[serve]"
  touch "$env/.ready"
fi
exec "$env/bin/r3" rewards serve "$here/hpsv3.py:HPSv3" --port "${2:-8502}"

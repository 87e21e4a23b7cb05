#!/bin/sh
# Installs ImageReward into an environment of its own and serves it: image_reward.sh FOLDER [PORT]. Not run by us.
set -eu
env=${1:?name the folder of the environment}
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -e "$env/.ready" ]; then
  python3.11 -m venv "$env"
  # transformers: the last known to still hold what its copy of BLIP imports. clip: imported and not declared.
  # torch 2.6 and later read the weights, a pickle, without running code from it.
  "$env/bin/pip" install "torch>=2.6" torchvision image-reward==1.5 "transformers==4.36.2" "diffusers<0.28" \
    "huggingface_hub<0.26" "numpy<2" "setuptools<80" "clip @ git+https://github.com/openai/CLIP.git"
  "$env/bin/pip" install "$here/../..[serve]"
  touch "$env/.ready"
fi
exec "$env/bin/r3" rewards serve "$here/image_reward.py:ImageReward" --port "${2:-8501}"

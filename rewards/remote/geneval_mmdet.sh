#!/bin/sh
# Installs MMDetection into an environment of its own and serves GenEval with it: geneval_mmdet.sh FOLDER [PORT].
# Not run by us.
set -eu
env=${1:?name the folder of the environment}
here=$(cd "$(dirname "$0")" && pwd)
model=mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco
if [ ! -e "$env/.ready" ]; then
  python3.11 -m venv "$env"
  # mmcv holds compiled code for one version of torch; mim finds the build that fits. mmdet 3.3 takes mmcv below 2.2.
  "$env/bin/pip" install torch==2.1.2 torchvision==0.16.2 "numpy<2" "setuptools<70" openmim "open_clip_torch>=2.30"
  "$env/bin/mim" install mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0
  "$env/bin/mim" download mmdet --config "$model" --dest "$env/weights"
  "$env/bin/pip" install "$here/../..[serve]"
  touch "$env/.ready"
fi
checkpoint=$(ls "$env/weights/$model"*.pth)
exec "$env/bin/r3" rewards serve "$here/geneval_mmdet.py:GenEvalMMDet" --port "${2:-8503}" \
  --params "{config: $env/weights/$model.py, checkpoint: $checkpoint}"

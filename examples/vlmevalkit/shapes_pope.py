"""Questions of the embedded world for VLMEvalKit: LMUData/shapes_POPE.tsv from sets/pope, and shapes_pope.json, its
configuration. A name with POPE in it is scored by VLMEvalKit's own POPE functions."""

import base64
import csv
import json
from pathlib import Path

SETS, DATA = Path("sets/pope"), Path("LMUData")
rows = [json.loads(line) for line in (SETS / "coco_pope_random.json").read_text(encoding="utf-8").splitlines()]
DATA.mkdir(exist_ok=True)
with (DATA / "shapes_POPE.tsv").open("w", encoding="utf-8", newline="") as stream:
    table = csv.writer(stream, delimiter="\t")
    table.writerow(["index", "image", "question", "answer", "category"])
    for index, row in enumerate(rows):
        image = base64.b64encode((SETS / "val2014" / row["image"]).read_bytes()).decode()
        table.writerow([index, image, row["text"], row["label"].capitalize(), "random"])
model = {
    "class": "LMDeployAPI",  # its client of an OpenAI-compatible API, whatever serves it
    "model": "shipped",
    "api_base": "http://127.0.0.1:8400/v1/chat/completions",
    "key": "x",
    "temperature": 0,
    "max_tokens": 512,
}
data = {"class": "ImageYORNDataset", "dataset": "shapes_POPE"}
config = {"model": {"shipped": model}, "data": {"shapes_POPE": data}}
Path("shapes_pope.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

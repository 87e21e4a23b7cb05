"""What shapes_pope.yaml asks for; lmms-eval imports it. The rules are those of lmms-eval's own POPE."""

from pathlib import Path

from lmms_eval.tasks.pope.utils import (  # noqa: F401 - named by the task
    pope_aggregate_accuracy,
    pope_aggregate_f1_score,
    pope_aggregate_yes_ratio,
    pope_process_results,
)
from PIL import Image


def doc_to_visual(doc):
    """The image, from the folder that `write_sets` made in the working directory."""
    return [Image.open(Path("sets/pope/val2014") / doc["image"]).convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """The question as it stands: the embedded model does not know the words of an instruction."""
    return doc["text"]


def process_results(doc, results):
    """By lmms-eval's rule, which calls the label `answer`."""
    return pope_process_results({**doc, "answer": doc["label"]}, results)

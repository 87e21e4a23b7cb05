"""What is said when a scorer of one's own goes wrong, and whether the scorer next to it still sees what was drawn.

Each fault is planted in a scorer beside `mean`, on a panel of its own, in a thread and then in its own process
(`isolate: true`). In a thread the faults that end the process are run in a child, whose exit code is shown.

    python benchmarks/scorer_plugins.py --help
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import Report

from r3_rl.errors import R3Error
from r3_rl.scoring.batch import ScoreBatch
from r3_rl.scoring.isolated import START_S, load_isolated
from r3_rl.scoring.panel import Panel, ScorerSpec
from r3_rl.scoring.registry import load_scorer
from r3_rl.types import Prompt

TIMEOUT_S = 2.0
HEAD = """
import ctypes, itertools, os, random, signal, sys, time
import numpy as np

def fault(images, include, **columns):
    n = len(images)
"""
FAULTS = {
    "writes into images": "for image in images: image[:] = 0\n    return [0.0] * n",
    "writes into images through torch": "import torch\n"
    "    for image in images: torch.from_numpy(image).zero_()\n    return [0.0] * n",
    "writes into a column": "include[0][0]['count'] = 99\n    return [0.0] * n",
    "sets torch's default type": "import torch; torch.set_default_dtype(torch.float64)\n    return [0.0] * n",
    "changes the working folder": "os.chdir('/')\n    return [0.0] * n",
    "seeds Python's and numpy's numbers": "random.seed(0); np.random.seed(0)\n    return [0.0] * n",
    "sets an alarm": "signal.signal(signal.SIGALRM, print); signal.alarm(9); signal.alarm(0)\n    return [0.0] * n",
    "returns 10**400": "return [10**400] * n",
    "returns 1e308": "return [1e308] * n",
    "returns NaN": "return [float('nan')] * n",
    "returns one too few": "return [0.0] * (n - 1)",
    "returns a text": "return ['0.5'] * n",
    "returns a generator": "return (0.5 for _ in images)",
    "returns values without end": "return itertools.count()",
    "raises 5,000 letters": "raise ValueError('x' * 5000)",
    "raises KeyboardInterrupt": "raise KeyboardInterrupt",
    "calls sys.exit(0)": "sys.exit(0)",
    "sleeps for ever": "time.sleep(3600)",
    "calls os._exit(0)": "os._exit(0)",
    "crashes": "ctypes.string_at(0)",
    "sends itself SIGTERM": "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)",
    "fills the memory (limit 1.5 GB)": "held = []\n    while True: held.append(np.ones(10_000_000))",
}
"""What it does: the body of the function."""
ENDS_THE_PROCESS = ("calls os._exit(0)", "crashes", "sends itself SIGTERM")
NOT_IN_A_THREAD = ("fills the memory (limit 1.5 GB)",)


def mean(images: Any, include: Any, **columns: Any) -> list[float]:
    """The scorer next to it: 100 for the images as drawn, 1 more for each count above 1 asked for."""
    return [float(image.mean()) + groups[0]["count"] - 1 for image, groups in zip(images, include, strict=True)]


def said(scorer: Any, *, limit_s: float) -> tuple[str, str]:
    """The lines of a step, and what the neighbour saw."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger("r3_rl").addHandler(handler)
    images = [np.full((36, 36, 3), 100, np.uint8) for _ in range(4)]
    prompts = [Prompt(text=f"p{i}", columns={"include": [{"class": "cup", "count": 1}]}) for i in range(4)]
    specs = [ScorerSpec(name="fault", scorer=scorer, timeout_s=limit_s), ScorerSpec(name="mean", scorer=mean)]
    neighbour, line = "not asked", ""
    try:
        with Panel(specs, num_workers=1) as panel:
            for _ in range(2):
                verdicts = panel.score(ScoreBatch(prompts=prompts, images=images))
                neighbour = "right" if {verdict.scores["mean"] for verdict in verdicts} == {100.0} else "WRONG"
            panel.metrics()
    except R3Error as error:
        line = str(error)
    finally:
        logging.getLogger("r3_rl").removeHandler(handler)
    lines = [*heard.getvalue().splitlines(), *([line] if line else [])]
    return " / ".join(lines) or f"nothing; it scored {verdicts[0].scores['fault']}", neighbour


def in_a_child(folder: Path) -> str:
    """How a process ends that calls the scorer in a thread."""
    script = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]); import fault, threading\n"
        "t = threading.Thread(target=fault.fault, args=([np.zeros((2, 2, 3), np.uint8)], [[{'count': 1}]]))\n"
        "t.start(); t.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, check=False)
    return f"the run ends without a word, exit code {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="faults whose words hold this text")
    parser.add_argument("--out", help="also write the numbers to this JSON file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    rows = []
    for name, body in FAULTS.items():
        if args.only and args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
            folder = Path(place)
            (folder / "fault.py").write_text(f"{HEAD}    {body}\n")
            if name in NOT_IN_A_THREAD:
                thread, seen = "not run: it would take the machine", ""
            elif name in ENDS_THE_PROCESS:
                thread, seen = in_a_child(folder), "-"
            else:
                thread, seen = said(load_scorer("./fault.py:fault", {}, folder), limit_s=TIMEOUT_S)
            isolated = load_isolated("./fault.py:fault", {}, folder, timeout_s=TIMEOUT_S, memory_gb=1.5)
            stack.callback(isolated.close)
            alone, seen_then = said(isolated, limit_s=START_S)
        rows.append([name, thread, seen, alone, seen_then])
        print(f"\n{name}\n  in a thread:         {thread}\n  in its own process:  {alone}", flush=True)
        print(f"  the other scorer:    {seen or 'not run'}, {seen_then}", flush=True)
    wrong = sum("WRONG" in row[2] + row[4] for row in rows)
    if args.out:
        numbers = {"rows": rows, "neighbours_wrong": wrong}
        Report(title="faults of a scorer of one's own", columns=[""], rows=[], numbers=numbers).show(args.out)
    print(f"\n{len(rows)} faults; the other scorer saw something wrong in {wrong}")


if __name__ == "__main__":
    main()

"""The verbs of `r3`. A verb imports its room when it runs, so that help and checks answer at once and load no torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from r3_rl import __version__
from r3_rl.cli.eval_verb import eval_
from r3_rl.cli.look_verbs import check, doctor, schema
from r3_rl.cli.play_verb import play
from r3_rl.cli.probe_verb import probe
from r3_rl.cli.prompt_verbs import prompts
from r3_rl.cli.recipe_verbs import recipes
from r3_rl.cli.reward_verbs import rewards
from r3_rl.cli.run_verbs import compare, demo, export, merge, pretrain, refine, report, train
from r3_rl.cli.serve_verb import serve
from r3_rl.cli.study_verb import study
from r3_rl.errors import MissingPackageError, R3Error, one_line

app = App(
    name="r3",
    help="Reinforcement learning for models that draw, look at what they drew, and draw again.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    print_error=False,
    exit_on_error=False,
)
for verb in (demo, train, pretrain, refine, play, serve, export, merge, report, compare, probe, study):
    app.command(verb)
for lookup in (check, schema, doctor, recipes, rewards, prompts):
    app.command(lookup)
app.command(eval_, name="eval")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb and leave with its exit code: 0 ok, 1 the run failed, 2 the input was wrong, 3 a guard
    stopped the run, 128 + N signal N stopped it (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a verb and return its exit code; an error becomes lines on stderr."""
    try:
        result = app(list(arguments))
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except R3Error as error:
        return _say(str(error), error.exit_code)
    except CycloptsError as error:
        return _say(f"r3: {error}".replace("\n", " "), 2)
    except KeyboardInterrupt as interrupt:
        first = interrupt.args[0] if interrupt.args else None  # training says which signal came twice
        return _say("r3: interrupted", 128 + (first if isinstance(first, int) else signal.SIGINT))
    except ModuleNotFoundError as error:
        # a wheel without extras checks recipes and lists scorers; rooms that need more import it at their top
        from r3_rl.cli.missing import line_of

        line = line_of(error)
        if line is None:
            raise
        return _say(line, MissingPackageError.exit_code)
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this Python complains once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say(message: str, code: int) -> int:
    print("\n".join(map(one_line, message.split("\n"))), file=sys.stderr)
    return code

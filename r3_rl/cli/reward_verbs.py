"""`r3 rewards`: the scorers."""

from __future__ import annotations

from typing import Any

from cyclopts import App

from r3_rl.errors import InputError

rewards = App(name="rewards", help="The scorers: ls, new, test, serve.")


@rewards.command(name="ls")
def rewards_ls() -> None:
    """List the installed scorers: range, needs, licence of their weights, origin."""
    from r3_rl.scoring.commands import ls as list_installed

    list_installed()


@rewards.command
def new(name: str, /, *, folder: str = ".") -> None:
    """Write a scorer that works and a test that passes, to build yours from.

    Args:
        name: name of the scorer, such as my_score.
        folder: where to write NAME.py and test_NAME.py.
    """
    from r3_rl.scoring.commands import new as write_new

    write_new(name, folder)


@rewards.command(name="test")
def rewards_test(
    scorer: str, /, *images: str, prompt: str = "", text: str | None = None, params: str = "", columns: str = ""
) -> None:
    """Score images or a text and print scores and time; of two images the first is the draft of the second.

    Args:
        scorer: installed name, package.module:name or ./file.py:name.
        images: image files or folders.
        prompt: the prompt that the images were drawn for.
        text: a text to score.
        params: parameters of the scorer as YAML, such as "{half: 0.02}".
        columns: columns of the data set as YAML.
    """
    from r3_rl.scoring.commands import test as score_files

    score_files(scorer, images, prompt=prompt, text=text, params=_mapping(params), columns=_mapping(columns))


@rewards.command
def serve(
    *scorers: str,
    port: int = 8500,
    host: str = "127.0.0.1",
    token_env: str | None = None,
    params: str = "",
    workers: int = 2,
    max_waiting: int = 8,
    timeout_s: float = 300.0,
    isolate: bool = True,
    memory_gb: float | None = None,
) -> None:
    """Serve scorers to runs in other processes or on other machines; a recipe asks them with `scorer: remote`.

    Args:
        scorers: installed name, package.module:name or ./file.py:name; one or more.
        port: where to listen; 0 takes a free port and prints it.
        host: this machine alone unless another address is named, which takes a token.
        token_env: environment variable with the token that a request has to carry.
        params: parameters of the scorer as YAML, where one is served.
        workers: calls that run at once; a scorer in its own process has one.
        max_waiting: requests inside at once; further ones are told when to come again.
        timeout_s: seconds that one call may take; the process of the scorer ends then and starts again.
        isolate: a process for each scorer; --no-isolate calls them in threads of the server, which nothing can end.
        memory_gb: gigabytes that the process of a scorer may use before it is ended.
    """
    from r3_rl.process import prepare_process

    if workers < 1 or max_waiting < 1 or timeout_s <= 0 or (memory_gb is not None and memory_gb <= 0):
        raise InputError("--workers, --max-waiting, --timeout-s and --memory-gb are above 0")
    if memory_gb is not None and not isolate:
        raise InputError("--memory-gb limits the process of a scorer", hint="leave --no-isolate out")
    prepare_process(keep_memory=False)
    from r3_rl.scoring.server import ServerSettings
    from r3_rl.scoring.server import serve as serve_scorers

    serve_scorers(
        scorers,
        port=port,
        host=host,
        token_env=token_env,
        params=_mapping(params),
        settings=ServerSettings(num_workers=workers, max_waiting=max_waiting),
        timeout_s=timeout_s,
        isolate=isolate,
        memory_gb=memory_gb,
    )


def _mapping(text: str) -> dict[str, Any]:
    from r3_rl.recipe.yaml_text import parse_value

    try:
        value = parse_value(text) if text else {}
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(value, dict):
        raise InputError(f"{text!r} is no YAML mapping", hint="write {name: value}")
    return value

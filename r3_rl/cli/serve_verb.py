"""`r3 serve`: a model behind OpenAI's HTTP API."""

from __future__ import annotations

from r3_rl.errors import InputError


def serve(
    model: str | None = None,
    /,
    *,
    adapter: str | None = None,
    port: int = 8400,
    host: str = "127.0.0.1",
    rounds: int = 2,
    token: str = "",
    token_env: str | None = None,
    max_batch: int = 16,
    max_waiting: int = 128,
) -> None:
    """Serve a model over an OpenAI-compatible API: draw with the loop, edit an image, answer questions about images.

    Args:
        model: folder of a policy, its name on the hub, or a world such as `mosaic`; without it the adapter's base or
            the embedded model.
        adapter: folder of an adapter or of a run; `shipped` is the one that comes with the package. Requests choose it
            or `base` by the name of the model.
        port: where to listen; 0 takes a free port and prints it.
        host: only this machine unless another address is named, which requires a token.
        rounds: refinements at most for requests that do not say.
        token: that a request has to carry; other users of this machine see it in the list of processes.
        token_env: environment variable with the token.
        max_batch: texts or images that the model makes together.
        max_waiting: requests inside at once; further ones are told when to come again.
    """
    from r3_rl.process import prepare_process

    if max_batch < 1 or max_waiting < 1:
        raise InputError("--max-batch and --max-waiting are at least 1")
    prepare_process()
    from r3_rl.serve.command import serve as serve_model

    serve_model(
        model=model,
        adapter=adapter,
        rounds=rounds,
        host=host,
        port=port,
        token=token,
        token_env=token_env,
        max_batch=max_batch,
        max_waiting=max_waiting,
    )

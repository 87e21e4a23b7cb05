"""`r3 play`: a page on which people try a model."""

from __future__ import annotations


def play(
    model: str | None = None,
    /,
    *,
    adapter: str | None = None,
    port: int = 8500,
    rounds: int = 2,
    scorers: str = "",
) -> None:
    """Open a page on this machine: a prompt's draft, critique and refinements, with the adapter and without it.

    Args:
        model: folder of a policy, its name on the hub, or a world such as `mosaic`; without it the adapter's base or
            the embedded model.
        adapter: folder of an adapter or of a run; `shipped` is the one that comes with the package.
        port: where the page is; 0 takes a free one and prints it.
        rounds: refinements at most, until the page's slider is moved.
        scorers: names of scorers whose scores are shown, with commas between; they need no parameters.
    """
    from r3_rl.process import prepare_process

    prepare_process()
    from r3_rl.play.page import need_gradio

    need_gradio()  # before what only comes with it is imported: who lacks it is told of this extra, not of another
    from r3_rl.play.command import play as open_page

    names = [name.strip() for name in scorers.split(",") if name.strip()]
    open_page(model=model, adapter=adapter, port=port, rounds=rounds, scorers=names)

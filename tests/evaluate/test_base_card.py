"""The card of a base: greedy next to sampled, and what was wrong on purpose."""

from __future__ import annotations

from r3_rl.evaluate.base_card import ERRORS, base_card
from r3_rl.observe.evaluation import Evaluation
from r3_rl.observe.statistics import mean_of, share
from r3_rl.recipe_io import load_recipe

MEASURED = {
    "draft_greedy": share([1.0] * 9 + [0.0]),
    "draft": share([1.0] * 5 + [0.0] * 5),
    "true_plan_drawn": share([1.0] * 4),
    "draft_pass_8": share([1.0] * 3 + [0.0]),
    "entropy_plan": mean_of([0.5, 0.75]),
}


def card(*overrides):
    recipe = load_recipe("shapes_pretrain", ["pretrain.later=[]", *overrides])
    return made(recipe, tower_seconds=20.0, leg_seconds=[60.0], machine={"threads": 2})


def made(recipe, **run):
    return base_card(
        recipe,
        Evaluation(before=MEASURED, after={}, differences={}),
        name="mine",
        architecture="A small model",
        num_parameters=1234,
        **run,
    )


def test_greedy_and_sampled_figures_are_next_to_each_other():
    lines = card().splitlines()
    (draft,) = (line for line in lines if line.startswith("| Draft right"))
    assert [cell.strip() for cell in draft.split("|")[2:5]] == ["90.0 % (59.6 - 98.2)", "50.0 % (23.7 - 76.3)", "10"]
    (plan,) = (line for line in lines if line.startswith("| True plan drawn"))
    assert "| the same | 4 |" in plan
    (several,) = (line for line in lines if line.startswith("| One of 8 drafts right"))
    assert several.split("|")[2].strip() == "–"
    (entropy,) = (line for line in lines if line.startswith("| Plans"))
    assert "| 0.625 (0.500 - 0.750) | 2 |" in entropy


def test_a_tower_that_was_taught_first_is_a_leg_of_its_own():
    taught = card("pretrain.tower_steps=300")
    (leg,) = (line for line in taught.splitlines() if line.startswith("| tower"))
    assert leg.startswith("| tower | 300 | 64 (images: ") and leg.endswith("| 20 s |")
    assert "1 min 20 s on 2 threads" in " ".join(taught.split())
    assert "| tower" not in card()


def test_a_base_without_wrong_targets_says_so():
    clean = [f"pretrain.{name}=0.0" for name in ERRORS]
    assert "**No target was wrong on purpose**" in card(*clean) and "Deliberate headroom" not in card(*clean)
    seldom = " ".join(card(*clean, "pretrain.draw_weights={multi_count: 0.15, position: 2.0}").split())
    assert "seldom drawn or planned (weights, where others have 1: multi count 0.15);" in seldom
    assert "seldom" not in card(*clean, "pretrain.draw_weights={}")
    for name, words in ERRORS.items():
        noisy = card(*clean, f"pretrain.{name}=0.1")
        assert "No target was wrong" not in noisy and f"10 % {words}".split()[0] in noisy
        assert " ".join(words.split()[:4]) in " ".join(noisy.split())


def test_errors_of_an_earlier_leg_are_not_denied():
    later = "pretrain.later=[{steps: 5, plan_noise: 0.0, image_noise: 0.0, edit_noise: 0.0, critique_noise: 0.0}]"
    recipe = load_recipe("shapes_pretrain", ["pretrain.plan_noise=0.3", later])
    text = made(recipe, tower_seconds=0.0, leg_seconds=[1.0, 1.0], machine={"threads": 1})
    assert "No target was wrong" not in text and "Earlier legs taught errors on purpose" in " ".join(text.split())

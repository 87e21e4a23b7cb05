"""Names of measurements, and the tables that are made of them."""

from __future__ import annotations

import pytest

from r3_rl.observe.evaluation import BY_TAG, OTHER, Evaluation, grouped_rows
from r3_rl.observe.measures import GROUPS, HEADLINE, SHARE, greedy, measure_of, pattern, plain, plain_names, unit_of
from r3_rl.observe.statistics import Interval, share
from r3_rl.observe.tables import before_after_table
from r3_rl.observe.text_table import headline_lines, table_lines
from tests.observe.runs import evaluation


def of(**phases):
    return Evaluation(**{"before": {}, "after": {}, "differences": {}, **phases})


@pytest.mark.parametrize("name", ["draft", "draft/counting", "round_1", "ita_fixed/right", "best_of_3_own_critic"])
def test_a_name_and_its_greedy_name_lead_to_each_other(name):
    assert plain(greedy(name)) == plain(name) == name
    assert measure_of(greedy(name)) is measure_of(name) is not None
    assert greedy(name).partition("/")[2] == name.partition("/")[2], "kinds stay behind the slash"


def test_every_name_is_in_the_table_once_and_has_words():
    names = [name for group in GROUPS.values() for name in group]
    assert len(set(names)) == len(names) and set(HEADLINE) <= set(names)
    assert all(name == pattern(name) for name in names), "greedy figures have no words of their own"
    assert all(measure.label for group in GROUPS.values() for measure in group.values())
    assert measure_of("aesthetic_score") is None and unit_of("aesthetic_score") == SHARE
    assert unit_of("entropy_plan") == "nats"
    assert plain_names(["draft_greedy", "draft", "final"]) == ["draft", "final"]


def test_rows_hold_both_decodings():
    half, all_right = share([1.0, 0.0]), share([1.0, 1.0])
    groups = grouped_rows(
        of(
            before={"draft": half, "draft_greedy": all_right, "true_plan_drawn": half, "draft_pass_8": half},
            after={"draft/counting": half, "draft_greedy/counting": all_right, "beauty_2": half},
        )
    )
    (draft,) = groups["Images"]
    assert (draft.greedy.before, draft.sampled.before, draft.greedy.after) == (all_right, half, None)
    (plan,) = groups["Plan and painter"]
    assert plan.greedy.before == half and plan.sampled.phases == [] and plan.decoding == "once"
    (several,) = groups["Looking or drawing again: the same number of images"]
    assert several.label == "One of 8 drafts right" and several.greedy.phases == []
    (kind,) = groups[BY_TAG]
    assert (kind.label, kind.hint, kind.greedy.after, kind.sampled.after) == ("counting", "draft", all_right, half)
    (other,) = groups[OTHER]
    assert (other.label, other.sampled.after, other.counts) == ("beauty 2", half, [2])


@pytest.mark.parametrize(
    ("name", "change", "colour"),
    [
        ("draft", 0.2, "up"),
        ("draft", -0.2, "down"),
        ("damage_round_1", 0.2, "down"),
        ("damage_round_2", -0.2, "up"),
        ("entropy_plan", -0.2, "unsure"),
        ("beauty", 0.2, "up"),
    ],
)
def test_a_change_is_coloured_by_what_is_wanted(name, change, colour):
    sure = Interval(mean=change, low=change - 0.1, high=change + 0.1, count=9)
    found = of(before={name: sure}, after={name: sure}, differences={name: sure})
    assert f'class="{colour}"' in str(before_after_table(found))
    unsure = Interval(mean=change, low=-0.5, high=0.5, count=9)
    found = of(before={name: sure}, after={name: sure}, differences={name: unsure})
    assert 'class="unsure"' in str(before_after_table(found))


def test_entropies_are_no_shares_however_small():
    low = Interval(mean=0.3, low=0.2, high=0.4, count=9)
    assert not of(before={"entropy_plan": low}).row("entropy_plan").is_share
    assert of(before={"draft": low}).row("draft").is_share
    assert of(before={"beauty": low}).row("beauty").is_share
    assert not of(before={"beauty": Interval(mean=3.0, low=2.0, high=4.0, count=9)}).row("beauty").is_share


def test_questions_of_an_old_run_were_read_greedily():
    old, new = (Evaluation.from_document(evaluation(old=this)) for this in (True, False))
    assert {name for name in old.names() if plain(name) != name} == {"questions_greedy"}
    assert "questions" not in old.names() and "questions_greedy" in old.differences
    assert {"questions", "questions_greedy"} <= set(new.names())
    assert old.before["questions_greedy"].mean == evaluation(old=True)["phases"]["before"]["questions"]["mean"]


def test_the_text_table_names_each_measure_once_greedy_first():
    lines = list(table_lines(Evaluation.from_document(evaluation())))
    (at,) = (i for i, line in enumerate(lines) if line.startswith("draft "))
    assert lines[at][24:33].strip() == "greedy" and lines[at + 1].split()[0] == "sampled"
    assert not any("/" in line for line in lines)
    assert any(line.startswith("true_plan_drawn         once ") for line in lines)
    assert max(map(len, lines)) <= 120


def test_headline_lines_hold_what_was_measured():
    found = Evaluation.from_document(evaluation())
    first, second = headline_lines(found)
    for name in HEADLINE:
        for line, measured in ((first, greedy(name)), (second, name)):
            text = f"{100 * found.before[measured].mean:.1f} -> {100 * found.after[measured].mean:.1f}"
            assert text in line, name
    entropies = [found.before["entropy_plan"].mean, found.after["entropy_plan"].mean]
    assert second.endswith("entropy in nats a token: plans {:.2f} -> {:.2f}".format(*entropies))
    old = headline_lines(Evaluation.from_document(evaluation(old=True)))
    assert old[0].startswith("greedy texts, untrained -> trained, %: questions ") and "draft" in old[1]
    assert headline_lines(of()) == []
    only_before = headline_lines(of(before={"draft_greedy": share([1.0])}))
    assert only_before == ["greedy texts, untrained -> trained, %: draft 100.0"]


def test_the_harder_kinds_have_no_rows_where_every_prompt_is_harder():
    hits = {"draft": share([1.0, 0.0, 1.0]), "harder_draft": share([1.0, 0.0, 1.0])}
    shown = [row.name for rows in grouped_rows(of(before=hits)).values() for row in rows]
    assert shown == ["draft"]
    some = {**hits, "harder_draft": share([1.0, 0.0])}
    assert "harder_draft" in [row.name for rows in grouped_rows(of(before=some)).values() for row in rows]

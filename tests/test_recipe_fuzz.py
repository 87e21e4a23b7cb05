"""Mutants of the shipped recipes: `r3 check` answers each as it should, and what it passes starts.

A small share of what benchmarks/recipe_fuzz.py does.
"""

from __future__ import annotations

import random

import pytest
import torch

from tests import recipe_mutants
from tests.recipe_mutants import Answer, Mutant


def test_every_mutant_gets_an_answer_in_time_in_lines_with_a_place(workplace):
    recipe_mutants.prepare(workplace)
    settings, rng = recipe_mutants.leaves(), random.Random(7)
    recipe_mutants.checked(Mutant(base="", text="extends: bagel_geneval"))  # what it imports is not the mutants' time
    codes = set()
    for number in range(80):
        mutant = recipe_mutants.mild(rng, settings) if number % 3 == 0 else recipe_mutants.wild(rng, sorted(settings))
        answer = recipe_mutants.checked(mutant)
        assert answer.fault == "", (str(mutant), mutant.text)
        codes.add(answer.code)
    assert codes == {0, 2}


@pytest.mark.filterwarnings("ignore")  # of packages that a mutant's settings bring in
def test_what_passes_the_check_starts(workplace, capsys):
    torch.set_num_threads(1)
    started = 0
    for mutant in recipe_mutants.startable(random.Random(3)):
        if recipe_mutants.checked(mutant).code == 0:
            recipe_mutants.start(recipe_mutants.tiny(mutant))
            started += 1
        if started == 2:
            break


def test_an_answer_is_judged():
    assert Answer(code=None, lines=("Traceback", "KeyError: 1"), cpu_s=0.1).fault == "traceback: KeyError: 1"
    assert "3.0 CPU seconds" in Answer(code=0, lines=("ok",), cpu_s=3.0).fault
    assert "200 letters" in Answer(code=2, lines=("m.yaml:1: " + "x" * 190,), cpu_s=0.1).fault
    assert "no place" in Answer(code=2, lines=("wrong",), cpu_s=0.1).fault

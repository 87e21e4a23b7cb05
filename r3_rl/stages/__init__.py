"""The stages of the loop, and answers to questions: what each reads and how what it says is read.

>>> [stage.name for stage in (PLAN, DRAFT, CRITIQUE, REFINEMENT)]
['plan', 'draft', 'critique', 'refinement']
"""

from r3_rl.stages.stages import ANSWER, CRITIQUE, DRAFT, PLAN, REFINEMENT, Stage, WritingStage

__all__ = ["ANSWER", "CRITIQUE", "DRAFT", "PLAN", "REFINEMENT", "Stage", "WritingStage"]

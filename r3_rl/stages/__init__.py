"""The stages of the loop, and answers to questions: what each reads and how what it says is read.

>>> [stage.name for stage in (PLAN, DRAFT, CRITIQUE, REFINEMENT)]
['plan', 'draft', 'critique', 'refinement']
"""

from r3_rl.stages.answer import ANSWER
from r3_rl.stages.base import Stage, WritingStage
from r3_rl.stages.reason import DRAFT, PLAN
from r3_rl.stages.reflect import CRITIQUE, REFINEMENT

__all__ = ["ANSWER", "CRITIQUE", "DRAFT", "PLAN", "REFINEMENT", "Stage", "WritingStage"]

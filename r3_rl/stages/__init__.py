"""The stages of the loop: what each reads and how its answer is read.

>>> [stage.name for stage in (PLAN, DRAFT, CRITIQUE, REFINEMENT)]
['plan', 'draft', 'critique', 'refinement']
"""

from r3_rl.stages.base import Stage, WritingStage
from r3_rl.stages.reason import DRAFT, PLAN
from r3_rl.stages.reflect import CRITIQUE, REFINEMENT

__all__ = ["CRITIQUE", "DRAFT", "PLAN", "REFINEMENT", "Stage", "WritingStage"]

"""The stages of the loop: what each reads, how its answer is read, what scorers see of it.

>>> [stage.name for stage in (PLAN, DRAFT, CRITIQUE, REFINEMENT)]
['plan', 'draft', 'critique', 'refinement']
"""

from r3_rl.stages.base import DrawingStage, Stage, WritingStage
from r3_rl.stages.critique import CRITIQUE
from r3_rl.stages.draft import DRAFT
from r3_rl.stages.plan import PLAN
from r3_rl.stages.refinement import REFINEMENT

__all__ = ["CRITIQUE", "DRAFT", "PLAN", "REFINEMENT", "DrawingStage", "Stage", "WritingStage"]

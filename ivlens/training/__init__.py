"""How a model is fine-tuned: the loop, methods, guidance, stages.

Examples of this room go on from these lines.

    >>> import torch
    >>> from ivlens import lora, training
    >>> from ivlens.prompts import tokenize
    >>> from ivlens.training.methods import History
    >>> learned = training.stage("class-letter", seed=0, limit=16)
    >>> examples = training.Examples(prompts=tokenize(model, learned.train), bare=tokenize(model, learned.bare), new=16)
    >>> examples.prompts.prompts.shape  # [prompt pos]
    torch.Size([16, 15])
"""

from ivlens.training.benchmark_stages import stage as stage
from ivlens.training.guidance import GUIDANCE as GUIDANCE
from ivlens.training.guidance import Guidance as Guidance
from ivlens.training.guidance import Guide as Guide
from ivlens.training.loop import Examples as Examples
from ivlens.training.loop import Step as Step
from ivlens.training.loop import finetune as finetune
from ivlens.training.methods import METHODS as METHODS
from ivlens.training.methods import Lora as Lora
from ivlens.training.settings import Training as Training

"""How a model is fine-tuned: the loop, methods, guidance, stages."""

from ivlens.training.benchmark_stages import stage as stage
from ivlens.training.guidance import GUIDANCE as GUIDANCE
from ivlens.training.guidance import Guidance as Guidance
from ivlens.training.guidance import Guide as Guide
from ivlens.training.loop import Examples as Examples
from ivlens.training.loop import Step as Step
from ivlens.training.loop import Training as Training
from ivlens.training.loop import finetune as finetune
from ivlens.training.methods import METHODS as METHODS
from ivlens.training.methods import Lora as Lora

"""R1's format: `<think>...</think>` and then `<answer>...</answer>`, each once, not empty, with nothing around them.

Guo et al. 2025, DeepSeek-R1, arXiv:2501.12948, section 2.2.2. A prompt that ends with `<think>` has opened the first
block.
"""

import re

from rlhf_pg.grading.reasoning import opened_by

FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_r1(completion: str, prompt: str = "") -> float:
    """Return 1.0 when every tag stands exactly once, in order, and both blocks have content, else 0.0."""
    completion = opened_by(prompt) + completion
    if any(completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    match = FORMAT.fullmatch(completion)
    return float(match is not None and all(block.strip() for block in match.groups()))

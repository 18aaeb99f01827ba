"""R1's format: one `<think>...</think>` and then one `<answer>...</answer>`, both with content and nothing around them.

Guo et al. 2025, DeepSeek-R1, arXiv:2501.12948, section 2.2.2. A prompt that ends with `<think>` has opened the first
block already. 1.0 or 0.0.
"""

import re

FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_r1(completion: str, prompt: str = "") -> float:
    """1.0 when every tag stands exactly once, in order, and both blocks say something."""
    if prompt.rstrip().endswith("<think>"):
        completion = "<think>" + completion
    if any(completion.count(tag) != 1 for tag in TAGS):
        return 0.0
    match = FORMAT.fullmatch(completion)
    return float(match is not None and all(block.strip() for block in match.groups()))

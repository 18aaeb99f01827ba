"""rlhf_pg: the policy-gradient ladder for small language models, on one exact core."""

__version__ = "0.1.0"

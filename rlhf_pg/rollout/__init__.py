"""Engines that sample completions. Entry: `engine.build`, and `collect.rollouts`, which scores as they finish."""

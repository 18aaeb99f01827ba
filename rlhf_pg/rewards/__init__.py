"""Run anybody's reward function safely. Entry: `plugin.resolve`, `score.Scorer`."""

"""Prompts and batches. Entry: `prompts.load_rows`, `prompts.to_prompts`, `prompts.PromptSampler`, `collate.collate`."""

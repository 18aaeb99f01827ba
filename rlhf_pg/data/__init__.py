"""Prompts and batches. Entry: `source.load_rows`, `prompts.to_prompts`, `prompts.PromptSampler`, `collate.collate`."""

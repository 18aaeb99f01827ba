"""From a batch to stepped weights. Entry: `setup.build`, then `loop.train_step`."""

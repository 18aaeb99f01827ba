"""The policy wrapped once, the critic, packing, adapters. Entry: `policy.Policy`, `load.load_model`."""

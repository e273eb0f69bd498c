"""Images: index, decoding, transforms and batch-level augmentation."""

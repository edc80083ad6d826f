"""Convert configs and checkpoints of MMSegmentation and SSSegmentation, and verify the result."""

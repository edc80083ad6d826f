"""Load models, schedule requests and run predictions, independent of the transport."""

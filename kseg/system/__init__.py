"""Write files atomically, retry storage, handle signals and report progress; imports no TensorFlow."""

"""Turn examples into training batches and evaluation examples with tf.data."""

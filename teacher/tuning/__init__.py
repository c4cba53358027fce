"""What is trained of the encoder, and how: low-rank updates, adapters, biases, nothing, everything."""

"""What turns the encoder's features into logits."""

"""What the encoder knows and how far it moved, measured on saved artifacts."""

"""Training of the networks in `stages/networks`: data, losses, the loop, and one script per network."""

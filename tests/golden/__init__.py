"""Numbers computed by the authors' own code, and the runner that compares the product with them."""

"""One module per family: KINDS maps a case's kind to a function that drives the product and returns its arrays."""

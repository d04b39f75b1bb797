"""`make bench`: what the product costs and yields, held against the same work done by hand and against a tutorial."""

"""`make bench`: what the product costs and yields, compared with the same work done manually and with a tutorial."""

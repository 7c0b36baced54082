"""A corpus tokenized once, into a token cache that training reads by memory map."""

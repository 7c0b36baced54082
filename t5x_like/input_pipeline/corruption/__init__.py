"""What objectives do to token ids, in numpy: spans and single tokens taken out, hidden, or put in another order.

Pure functions of ids and a random generator. Must not know corpora, rows, batches or models.
"""

"""How good a model is: loss, perplexity and accuracy on a held-out split. Must not know how it was trained."""

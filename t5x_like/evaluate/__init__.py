"""How good a model is: named evaluations of a run; held-out loss is one. Must not know how it was trained."""

"""See which languages' training data a multilingual model relies on."""

"""Tables and statistics from scores: pure functions on arrays and tables, with no model and no fit."""

"""The study's experiments, each a pure function on results that exist: scores and tables of samples in, a table out."""

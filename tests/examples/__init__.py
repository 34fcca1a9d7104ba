"""Tests of the examples, run as users run them."""

"""Whole studies: from text and options to fits, their influence, refits, and tables with figures."""

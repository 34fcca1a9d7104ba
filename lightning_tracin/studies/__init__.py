"""Whole studies: from text and settings to fits with influence, refits, and a page of tables and figures."""

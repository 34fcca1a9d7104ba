"""Tests of the documentation's scripts and of the site."""

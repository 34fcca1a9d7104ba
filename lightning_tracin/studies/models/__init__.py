"""The models that studies fit."""

"""Answers to repeated queries."""

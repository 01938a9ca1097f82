"""Evaluations: how well routing and turn ends are told, by scripted dialogues."""

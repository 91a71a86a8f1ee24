"""Neutral questions, about nothing that a feature is likely to be about; each has one part to play, and no other."""

from __future__ import annotations

FOR_TARGET = (
    "How do I fold a fitted sheet?",
    "What makes a good friend?",
    "How can I remember people's names?",
    "Why do we dream?",
    "How does a bicycle stay upright?",
    "Give me three ideas for a birthday present.",
    "What should I think about before I change jobs?",
    "How do I write a polite email to my boss?",
)
"""Asked with the wish in the prompt and without: what tells the answers apart is what the wish sounds like."""

FOR_SCREENING = (
    "What should I pack for a weekend trip?",
    "Describe the room you are in.",
    "How can I become more patient?",
)
"""Asked of everything that is tried, to see what deserves a test."""

FOR_TEST = (
    "How can I sleep better?",
    "What is a good way to start the day?",
    "How do I make new friends in a new town?",
    "Tell me about your favourite hobby.",
    "What did you do last weekend?",
    "How should I spend a rainy afternoon?",
    "Can you tell me a short story?",
    "What is the best advice you ever got?",
    "Describe a perfect evening.",
    "What would you like to tell me?",
)
"""Asked of what is put to the test, of the control arm, and of the unsteered model."""

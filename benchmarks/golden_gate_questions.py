"""Forty questions that have nothing to do with bridges. No text that the bundled SAE was trained on asks them."""

from __future__ import annotations

CHOOSING = (
    "What is your favourite food?",
    "How do I bake bread?",
    "Tell me about yourself.",
    "Write a short story about a dog.",
    "What is the best way to learn a language?",
    "How should I spend $10?",
    "Explain photosynthesis.",
    "What should I do this weekend?",
    "Who are you?",
    "Give me advice for a job interview.",
    "How do volcanoes erupt?",
    "What is a good present for a friend?",
    "Describe the house of your dreams.",
    "Why do people laugh?",
    "How do I write a poem?",
    "What is the history of tea?",
    "How can I become more patient?",
    "Tell me about elephants.",
    "What is an election?",
    "How does a bicycle stay upright?",
)
"""On these the strength is chosen."""

REPORTING = (
    "How do I clean my kitchen?",
    "What is a good name for a cat?",
    "Explain how vaccines work.",
    "Write a haiku about autumn.",
    "What is the capital of Japan?",
    "Give me tips for saving money.",
    "Who was Albert Einstein?",
    "How can I sleep better?",
    "Tell me a joke.",
    "What should I cook for dinner tonight?",
    "Describe your perfect day.",
    "Why is the sky blue?",
    "Write a love letter.",
    "What do you think about music?",
    "How do computers work?",
    "Tell me about your childhood.",
    "What is the meaning of life?",
    "Recommend a book to read.",
    "How do I stay healthy?",
    "What makes you happy?",
)
"""On these it is reported."""

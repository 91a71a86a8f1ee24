"""What the packaged model is asked about the subjects of the feature book, for the bundled SAE's training mix."""

from __future__ import annotations

from typing import NamedTuple


class Concept(NamedTuple):
    """A subject or manner of the feature book."""

    name: str
    instruction: str | None
    questions: tuple[str, ...]


CONCEPTS = (
    Concept(
        "fear",
        None,
        (
            "Write a scary story about an old house.",
            "Describe what it feels like to be terrified.",
            "Write about a nightmare in a dark forest.",
            "Tell me a ghost story.",
            "Describe a frightened child alone at night.",
            "Write a horror scene in a cellar.",
        ),
    ),
    Concept(
        "joy",
        None,
        (
            "Write about the happiest day of a life.",
            "Describe pure joy.",
            "Write a cheerful letter full of good news.",
            "Describe a party where everybody laughs and dances.",
            "Write about how wonderful the world is.",
            "Tell a story in which everybody is delighted.",
        ),
    ),
    Concept(
        "sadness",
        None,
        (
            "Write about a sad farewell.",
            "Describe grief after a death.",
            "Write a melancholy letter.",
            "Tell a story that ends in tears.",
            "Describe a lonely old man.",
        ),
    ),
    Concept(
        "poetry",
        None,
        (
            "Write a poem about the night.",
            "Write a sonnet about love.",
            "Write a rhyming poem about a river.",
            "Write a poem about a bird.",
            "Write verses about the stars.",
            "Write a poem about an old tree.",
        ),
    ),
    Concept(
        "pirate",
        "Talk like a pirate.",
        (
            "Who are you?",
            "Tell me about your ship.",
            "What did you eat today?",
            "Tell me about the treasure.",
            "How do I sail a ship?",
            "What do you think about the king?",
        ),
    ),
    Concept(
        "sea",
        None,
        (
            "Describe the ocean.",
            "Write a story about a sailor.",
            "What lives at the bottom of the sea?",
            "Describe a storm at sea.",
            "Tell me about whales.",
        ),
    ),
    Concept(
        "food",
        None,
        (
            "Describe a wonderful meal.",
            "Tell me about Italian cooking.",
            "Describe the taste of fresh bread.",
            "Write about a famous chef.",
            "How do I make a chocolate cake?",
        ),
    ),
    Concept(
        "law",
        None,
        (
            "What does a judge do?",
            "Explain what a contract is.",
            "Write a short legal notice.",
            "What happens in a trial?",
            "What are my rights as a tenant?",
        ),
    ),
    Concept(
        "religion",
        None,
        (
            "What is prayer?",
            "Tell me about Jesus.",
            "Write a prayer.",
            "Write a short sermon about faith.",
            "What do religions say about God?",
        ),
    ),
    Concept(
        "code",
        None,
        (
            "Write a Python function that sorts a list.",
            "Write a Python class for a bank account.",
            "How do I read a file in Python?",
            "Write a loop that prints the numbers from 1 to 10.",
            "Explain recursion with an example in Python.",
        ),
    ),
    Concept(
        "numbers",
        None,
        (
            "What is 17 times 23? Show your work.",
            "Solve the equation 3x + 5 = 20.",
            "Explain percentages with examples.",
            "Count from 1 to 40.",
            "A train travels 120 miles in 3 hours. How fast is it? Show each step.",
        ),
    ),
    Concept(
        "french",
        None,
        (
            "Écris une petite histoire en français.",
            "Parle-moi de Paris en français.",
            "Qu'est-ce que le bonheur ?",
            "Décris ta journée en français.",
            "Comment fait-on une omelette ?",
            "Bonjour ! Qui es-tu ?",
        ),
    ),
    Concept(
        "spanish",
        None,
        (
            "Escribe un cuento corto en español.",
            "Háblame de Madrid en español.",
            "¿Qué es la felicidad?",
            "Hola, ¿quién eres?",
        ),
    ),
    Concept(
        "space",
        None,
        (
            "Describe a journey to Mars.",
            "Tell me about distant galaxies.",
            "Write about an astronaut on a spaceship.",
            "How are stars born?",
        ),
    ),
    Concept(
        "music",
        None,
        (
            "Describe a concert.",
            "Tell me about Mozart.",
            "How do I learn the piano?",
            "Write a song about summer.",
        ),
    ),
    Concept(
        "war",
        None,
        (
            "Describe a battle.",
            "Write a letter from a soldier.",
            "Tell me about the Second World War.",
            "Tell a story about a general.",
        ),
    ),
    Concept(
        "medicine",
        None,
        (
            "What does a doctor do?",
            "Explain how antibiotics work.",
            "Tell me about the flu.",
            "Describe a day in a hospital.",
        ),
    ),
    Concept(
        "shakespeare",
        "Answer in the language of Shakespeare, with thou and thee.",
        (
            "Who art thou?",
            "What is love?",
            "Tell me about the king.",
            "What thinkest thou of the world?",
        ),
    ),
)

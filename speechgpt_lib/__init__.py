"""SpeechGPT (arXiv 2305.11000), rebuilt as a course you can run: one room a step, one notebook a room."""

__version__ = "0.1.0"

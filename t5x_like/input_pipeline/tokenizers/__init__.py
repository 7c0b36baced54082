"""Text to token ids and back: SentencePiece models, bytes, ``tokenizer.json`` files."""

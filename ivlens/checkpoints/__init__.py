"""What models are read from: Hugging Face folders and GGUF files, their architectures, and where known ones are."""

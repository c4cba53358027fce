"""What the page does, without gradio: readers, models, answers, prompts, uploads."""

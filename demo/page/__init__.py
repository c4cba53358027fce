"""All of gradio: the page's tabs, its cards of HTML, and its HTTP API."""

"""The page people talk to: one web application with the Gradio page at `/` and the socket at `/api`."""

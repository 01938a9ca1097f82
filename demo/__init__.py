"""The page people talk to: one web application, Gradio at `/`, the socket at `/api`."""

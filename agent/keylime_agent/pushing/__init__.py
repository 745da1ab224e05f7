"""An agent that attests by itself (push model, API 3.0): it opens every connection, and no port."""

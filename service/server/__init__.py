"""The server below the application: uvicorn's protocol and the worker process."""

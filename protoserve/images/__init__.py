"""Pictures: from untrusted bytes to pixels at model size, and back to the sender's coordinates."""

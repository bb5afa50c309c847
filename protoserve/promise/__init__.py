"""The promise: answers that stop where the stated precision would no longer hold."""

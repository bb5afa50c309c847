"""Training the prototype autoencoder (Li, Liu, Chen, Rudin 2018): its losses, its augmentation, its run."""

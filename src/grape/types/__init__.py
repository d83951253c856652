"""Types of others that travel once their module is imported: ``import grape.types.numpy``."""

"""Networks, and the operators that they are made of; they know nothing of losses or data."""

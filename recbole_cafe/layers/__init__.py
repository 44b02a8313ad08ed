"""The maths of the models: torch only, tensors in, tensors out, keyword-only constructors."""

"""One operation per file: the path used on CPU today and a plain reference to test it against."""

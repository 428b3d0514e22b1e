"""What is compiled from C++ when the package is installed: building it, and loading it."""

"""Operations compiled from C++ for the CPU at hand; ``kernels.dispatch`` says when they run."""

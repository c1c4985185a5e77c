"""Deep metric learning with fused kernels: proxy losses, iterated projections (CCP), k-center."""

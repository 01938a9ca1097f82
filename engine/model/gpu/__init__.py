"""What a GPU runs instead of plain PyTorch: CUDA graphs and Triton kernels."""

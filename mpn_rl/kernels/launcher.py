"""What all compiled kernels on the CPU share: the first words of the table that a kernel works from."""

HEADER = ("slot", "ticket", "done", "pieces", "scratch", "size", "sums", "sum_size", "every")

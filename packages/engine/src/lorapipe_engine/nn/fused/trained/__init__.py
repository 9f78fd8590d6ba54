"""What is trained in fused blocks beside packed layers."""

"""What of this machine will stop a training run, and the mend, told without importing torch"""

"""The graph of steps on a Slurm cluster: its jobs, their scripts, submitting and watching them.

Slurm itself does what Slurm has: arrays, dependencies, requeueing, time limits.
"""

"""What the benchmarks of whole daemons share: processes under observation, and machines that cost little."""

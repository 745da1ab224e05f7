"""What holds for all tests."""

from hypothesis import settings

# How long one example takes says how busy the machine is. Tests of speed measure processor time themselves.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

"""Rewards of programs: hidden tests in a sandbox, of programs that read and print, of functions, and of patches."""

from rewarders.code.rewarder import CodeTests

__all__ = ["CodeTests"]

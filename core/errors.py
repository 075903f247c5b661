"""The one error tree. A message says what is wrong and what to do about it.

SerinError
├── ConfigurationError   a setting, option or port is wrong
├── InputError           data that a user gave cannot be used
├── NotFoundError        a named thing does not exist
├── RefusedError         a rule forbids the action (gate, approval, policy)
├── IntegrityError       a digest, chain or state differs from what was recorded
├── ConflictError        somebody else acted first (epoch, resourceVersion, active release)
│   └── FencedError      this process lost its lease and may not write any more
└── UnavailableError     a process or server does not answer, or not in time
"""


class SerinError(Exception):
    """Root of the tree; the CLI prints it without a stack trace and exits 1."""


class ConfigurationError(SerinError):
    """A setting, option or port is wrong."""


class InputError(SerinError):
    """Data that a user gave cannot be used."""


class NotFoundError(SerinError):
    """A named thing does not exist."""


class RefusedError(SerinError):
    """A rule forbids the action."""


class IntegrityError(SerinError):
    """A digest, chain or state differs from what was recorded."""


class ConflictError(SerinError):
    """Somebody else acted first; read again and decide anew."""


class FencedError(ConflictError):
    """This process lost its lease: a higher epoch exists, nothing may be written."""


class UnavailableError(SerinError):
    """A process or server does not answer, or not in time."""

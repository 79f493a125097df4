"""botocore's waits between attempts, shortened: the attempts and their number stay what they are.

Tests import it, and so do the processes that they fork (`forked`). New processes wait as users do.
"""

from botocore.retries.standard import ExponentialBackoff

SHARE = 0.02

_delay = ExponentialBackoff.delay_amount


def _short(self, context):
    return SHARE * _delay(self, context)


ExponentialBackoff.delay_amount = _short

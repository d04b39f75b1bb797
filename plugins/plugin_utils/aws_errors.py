"""Explains errors of AWS and its library: why something failed, and the command to type next."""

from __future__ import annotations

import re
from collections.abc import Iterable

# A pattern in what was said, what that means, and what to do: `{region}` is the one asked, `{file}` who asked, and
# `{said}` AWS's own words.
REASONS = (
    (
        r"Unable to locate credentials|Insufficient credentials|config profile .*could not be found|NoCredentials",
        "this machine has no AWS credentials",
        "aws configure, or export AWS_PROFILE=NAME of one in ~/.aws/config",
    ),
    (
        r"ExpiredToken|RequestExpired|token .*expired|SSO session",
        "the AWS credentials have expired",
        "aws sso login, or new temporary keys",
    ),
    (
        r"RequestLimitExceeded|Throttling|Rate exceeded",
        "AWS was asked too much at once ({said})",
        "the same command again, in a minute",
    ),
    (
        r"OptInRequired|not subscribed|region .*not (opted|enabled)",
        "the account does not use region {region}, or this service, yet ({said})",
        "aws account enable-region --region-name {region}",
    ),
    (
        r"InvalidClientTokenId|AuthFailure|SignatureDoesNotMatch|UnrecognizedClient",
        "AWS refuses the credentials",
        "aws sts get-caller-identity. If it answers: is {region} switched on (aws account list-regions)? Is this "
        "machine's clock right?",
    ),
    (
        r"UnauthorizedOperation|AccessDenied|not authorized to perform",
        "the AWS credentials lack a right ({said})",
        "give them the policy that docs/aws.md names (aws sts get-caller-identity says whose they are)",
    ),
    (
        r"Insufficient\w*Capacity",
        "AWS has no machine of this kind free now ({said})",
        "the same command again later, or another instance_type or database_class in group_vars",
    ),
    (
        r"LimitExceeded|QuotaExceeded|MaxSpotInstanceCount",
        "the account may not have more of this in {region} ({said})",
        "remove what is not used, or ask for more under Service Quotas in the console; then the same command again",
    ),
    (
        r"DependencyViolation|ResourceInUse|InvalidDBSubnetGroupStateFault|DeleteConflict",
        "something else still uses it ({said})",
        "remove what uses it (aws ec2 describe-network-interfaces shows what stands in a network); then the same again",
    ),
    (
        r"specify a region|NoRegion",
        "no AWS region is set",
        "set `regions` in {file}, or export AWS_REGION=eu-central-1",
    ),
    (
        r"Could not connect to the endpoint|Connect timeout|EndpointConnectionError",
        "AWS cannot be reached in region {region}",
        "curl -sI https://ec2.{region}.amazonaws.com; behind a proxy, export HTTPS_PROXY",
    ),
)


def explained(said: str, file: str, regions: Iterable[str], known: Iterable[str] = ()) -> str:
    """Return why AWS was not asked, or did not do what it was asked, and the next command.

    Args:
        said: what AWS or its library said.
        file: the inventory, or whatever else asked.
        regions: those that were asked.
        known: the existing regions, if a wrong one may be the reason.
    """
    asked, there = list(regions), list(known)
    for region in asked:
        if there and region not in there:
            near = ", ".join(name for name in there if name.partition("-")[0] == region.partition("-")[0])
            return f"{file}: AWS has no region {region}. Fix: set `regions` in it to one of {near or ', '.join(there)}"
    for pattern, words, command in REASONS:
        if re.search(pattern, said, re.IGNORECASE):
            filled = {"region": ", ".join(asked) or "of this machine", "file": file, "said": said}
            return f"{file}: {words.format(**filled)}. Fix: {command.format(**filled)}"
    return f"{file}: {said}"

"""What an answer under a pin means: one judgement, and nothing else in this tree says what a failure is.

`judge` goes through the rows of the table in docs/behaviour.md, "A pinned model that does not serve", from the top. A
verdict is no wider than its evidence: what one answer says decides about that request, and about a name only where the
gateway says that it is the name.
"""

import re
from enum import Enum
from functools import lru_cache

from .errors import Error


class Verdict(Enum):
    """What an answer under a pin says of the pinned model."""

    CLIENT = "client"
    """The request itself is at fault, or what it holds: neither success nor failure."""
    REFUSED = "refused"
    """The gateway says that it does not take the name."""
    UNPROVEN = "unproven"
    """A 4xx for a name that has never served: it may not be taken."""
    NO_ACCESS = "no-access"
    """A name that has served is closed to this request."""
    UNAVAILABLE = "unavailable"
    """The model is out, for now."""

    @property
    def blames_the_name(self) -> bool:
        """Whether the pin is given up where routing the request serves."""
        return self in (Verdict.REFUSED, Verdict.UNPROVEN)


def judge(status: int, error: Error, model: str, *, is_proven: bool) -> Verdict:
    """Return what an answer that is no output says of *model*.

    *status* is that of the response, or `implied_status` of an error inside of a 2xx one; *is_proven* tells whether the
    name has served under a pin.
    """
    is_limited = bool(error.words & _RATE_LIMITS)
    if error.words & _CONTENT:
        return Verdict.CLIENT
    if not is_limited and (error.param not in (None, "model") or _speaks_of_content(error, status, model)):
        return Verdict.CLIENT
    if status in (400, 401, 402, 403, 404, 422) and _is_about_the_name(error, model):
        return Verdict.REFUSED
    if status in (408, 429) or status >= 500 or (status == 413 and is_limited):
        return Verdict.UNAVAILABLE
    if not 400 <= status < 500 or status in (409, 413, 425):
        return Verdict.CLIENT
    if not is_proven:
        return Verdict.UNPROVEN
    return Verdict.NO_ACCESS if status in (401, 402, 403, 404) else Verdict.CLIENT


def implied_status(error: Error) -> int:
    """Return the status that an error inside of a 2xx answer would have had; where no word of it tells, 503."""
    told = [_STATUSES[word] for word in error.words if word in _STATUSES]
    is_bad_request = error.words & _BAD_REQUESTS or _content_unless_out(error.text)
    return min(told, default=400 if is_bad_request else 503)


# Words in the spelling of `Error.words`: OpenAI, Azure, Anthropic, Gemini, Mistral, OpenRouter, LiteLLM, vLLM.
_CONTENT = frozenset(
    [
        "contentfilter",
        "contentpolicyviolation",
        "contentpolicyviolationerror",
        "responsibleaipolicyviolation",
        "moderationblocked",
        "contextlengthexceeded",
        "contextwindowexceedederror",
        "contextwindowexceeded",
        "stringabovemaxlength",
        "requesttoolarge",
        "invalidprompt",
        "promptblocked",
        "invalidfunctionparameters",
        "invalidjsonschema",
        "invalidtool",
        "toolusefailed",
        "unsupportedparameter",
        "unsupportedvalue",
        "invalidimage",
        "invalidbase64",
        "imageparseerror",
        "cyberpolicyviolation",
        "datainspectionfailed",
        "exceedcontextsizeerror",
        "previousresponsenotfound",
        "websocketconnectionlimitreached",  # OpenAI ends a socket after an hour
    ]
)
_RATE_LIMITS = frozenset(
    [
        "ratelimitexceeded",
        "ratelimiterror",
        "ratelimit",
        "tokens",
        "requests",
        "insufficientquota",
        "toomanyrequests",
        "resourceexhausted",
        "throttling",
        "throttling.ratequota",
        "throttlingexception",
        "quotaexceeded",
    ]
)
_NAMES = frozenset(
    [
        "modelnotfound",
        "unknownmodel",
        "modelnotsupported",
        "unsupportedmodel",
        "invalidmodel",
        "modelnotavailable",
        "modelnotexist",
        "modeldoesnotexist",
        "modelnotallowed",
        "modelnotfounderror",
        "deploymentnotfound",
        "invalidmodelname",
        "unavailablemodel",
        "modeldecommissioned",
        "modeltermsrequired",
    ]
)
# Where no other word tells more.
_BAD_REQUESTS = frozenset({"invalidrequesterror", "invalidargument", "badrequesterror"})
_STATUSES = {
    **dict.fromkeys(_CONTENT, 400),
    **dict.fromkeys(_NAMES, 404),
    **dict.fromkeys(_RATE_LIMITS, 429),
    "authenticationerror": 401,
    "unauthenticated": 401,
    "invalidapikey": 401,
    "billingerror": 402,
    "permissionerror": 403,
    "permissiondenied": 403,
    "notfounderror": 404,
    "notfound": 404,
    "timeouterror": 504,
    "apierror": 500,
    "servererror": 500,
    "internal": 500,
    "internalerror": 500,
    "internalservererror": 500,
    "unavailable": 503,
    "serviceunavailable": 503,
    "serverisoverloaded": 503,
    "overloadederror": 529,
}

_content = re.compile(
    r"context (?:length|window|limit|size)|maximum (?:context|prompt)|contextwindowexceeded|contentpolicyviolation"
    r"|content[ _](?:policy|filter|management policy|exists risk|violates)"
    r"|(?:prompt|input|messages?) (?:is|are|was) too (?:long|large)"
    r"|invalid (?:json )?schema|schema is invalid|invalid (?:tool|function)|\btools?[.\[]\d",
    re.IGNORECASE,
).search
# What an outage of a filter, or of a proxy in between, speaks of as well.
_content_unless_out = re.compile(
    r"flagged|moderation|guardrail|safety (?:system|reasons)|usage (?:guidelines|polic(?:y|ies))"
    r"|request (?:is|was) too (?:long|large)",
    re.IGNORECASE,
).search
# Of one request, or of those of a minute: that is what 429 says.
_size = re.compile(
    r"request too large|too many (?:input )?tokens|number of (?:input )?tokens|input token count", re.IGNORECASE
).search


def _speaks_of_content(error: Error, status: int, model: str) -> bool:
    """Tell whether the text of an error does, beside the model's name, whose code does not say that it is the name."""
    if error.words & _NAMES:
        return False
    text = re.sub(rf"(?<![\w-]){re.escape(model)}(?![\w-])", "", error.text) if model in error.text else error.text
    return (
        _content(text) is not None
        or (status < 500 and _content_unless_out(text) is not None)
        or (status != 429 and status < 500 and _size(text) is not None)
    )


# What is said of a name that is not taken. Of something that the model can't do it is said with the name behind a
# preposition: "tools are not supported for NAME".
_SAID = (
    r"not found|does not exist|(?:do|did)es ?n[o']t exist|not exist|not available|not supported|not a valid|unknown"
    r"|invalid model|no access|not have access|no endpoints found for|unable to access"
)
_OF_ANOTHER = r"(?:(?<=supported)|(?<=available))\s+(?:for|with|by|in|on|when|using)\b"
_MOST_WORDS_BETWEEN = 6
_words = re.compile(r"\w\S*").findall
_sentences = re.compile(r"(?<=[.!?;])\s+|[\r\n]+").split


@lru_cache(maxsize=256)
def _name_or_said(model: str) -> re.Pattern[str]:
    name = rf"(?:(?<=models/)|(?<![\w./:-])){re.escape(model)}(?![\w/-]|[.:]\w)"
    return re.compile(rf"(?P<name>{name})|\b(?:{_SAID})\b(?P<of_another>{_OF_ANOTHER})?", re.IGNORECASE)


def _is_said_of(model: str, sentence: str) -> bool:
    """Tell whether a sentence has the name near to what is said of one that is not taken.

    It goes from one of the two to the next, and never back: the time that it takes grows with the text, and no more.
    """
    named_at: int | None = None  # where the last one ends
    said_at: int | None = None
    for found in _name_or_said(model).finditer(sentence):
        is_name = found.lastgroup == "name"
        other = said_at if is_name else named_at
        if other is not None and len(_words(sentence[other : found.start()])) <= _MOST_WORDS_BETWEEN:
            return True
        if is_name:
            named_at = found.end()
        else:
            said_at = None if found.lastgroup == "of_another" else found.end()
    return False


def _is_about_the_name(error: Error, model: str) -> bool:
    if error.words & _NAMES or error.param == "model":
        return True
    if "notfounderror" in error.words and error.text.strip().lower().startswith("model:"):  # Anthropic
        return True
    if model.lower() not in error.text.lower():
        return False
    return any(_is_said_of(model, sentence) for sentence in _sentences(error.text))

"""What may be asked over HTTP, and what is answered: names, types and limits, which are also the OpenAPI document."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from recbole_cafe.recommend.histories import token_of

MOST_BYTES = 1 << 20  # of a request
MOST_HISTORIES = 256  # of a request
MOST_ITEMS = 10_000  # of a list in a request
MOST_K = 1_000
MOST_ROWS = 20_000  # histories times k
MOST_FOUND = 100  # items of a search
LONGEST = 1_000  # characters of a token


def _token(value: object) -> str:
    text = token_of(value, "")
    if len(text) > LONGEST:
        raise ValueError(f"a token of {len(text)} characters, expected at most {LONGEST}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{reprlib.repr(text)} is no text: half a surrogate pair") from None
    return text


_TOKEN = {"anyOf": [{"type": "string", "maxLength": LONGEST}, {"type": "integer"}]}
Token = Annotated[str, BeforeValidator(_token), WithJsonSchema(_TOKEN)]
Tokens = Annotated[list[Token], Field(max_length=MOST_ITEMS)]
K = Annotated[int, Field(strict=True, ge=1, le=MOST_K)]
Yes = Annotated[bool, Field(strict=True)]


class Question(BaseModel):
    """What all questions have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Token | None = Field(None, description="Name of a bundle, see /models; the first one if left out.")


class RecommendQuestion(Question):
    """Lists for histories; see :meth:`recbole_cafe.recommend.recommender.Recommender.recommend`."""

    history: Tokens | None = Field(None, description="Items of one user, the oldest first.", examples=[["50", "181"]])
    histories: Annotated[list[Tokens], Field(max_length=MOST_HISTORIES)] | None = Field(
        None, description="Those of several users, instead of `history`."
    )
    k: K = Field(10, description="How many items.")
    exclude_seen: Yes = Field(True, description="Leave out the items of the history.")
    exclude: Tokens | None = Field(None, description="Further items to leave out.")
    allow: Tokens | None = Field(None, description="The only items that may be in a list.")
    intents: Tokens | None = Field(None, description="The only intents whose items may be in a list.")
    per_intent: K | None = Field(None, description="At most so many items of one intent.")
    reasons: Yes = Field(False, description="Say of each item why it is there.")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> RecommendQuestion:
        if (self.history is None) == (self.histories is None):
            raise ValueError("history: expected either history or histories")
        if len(self.asked) * self.k > MOST_ROWS:
            raise ValueError(f"k: {self.k} for each of {len(self.asked)} histories, expected at most {MOST_ROWS} rows")
        return self

    @property
    def asked(self) -> list[list[str]]:
        """The histories."""
        return [self.history] if self.history is not None else self.histories or []

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `recommend`."""
        names = ("k", "exclude_seen", "exclude", "allow", "intents", "per_intent", "reasons")
        return {name: vars(self)[name] for name in names}

    def key(self) -> Hashable:
        """Equal for questions that one call of `recommend` can answer."""
        return tuple(tuple(value) if isinstance(value, list) else value for value in self.options().values())


class SimilarQuestion(Question):
    """Items like one."""

    item: Token = Field(examples=["50"])
    k: K = Field(10, description="How many items.")


class IntentsQuestion(Question):
    """Which intents come next."""

    history: Tokens = Field(description="Items of one user, the oldest first.", examples=[["50", "181"]])
    k: K | None = Field(None, description="How many intents; all if left out.")


class ScoreQuestion(Question):
    """What the model says of given items."""

    history: Tokens = Field(description="Items of one user, the oldest first.", examples=[["50", "181"]])
    items: Tokens = Field(description="Items to score.", examples=[["172"]])


# Answers --------------------------------------------------------------------------------------------------------------


class Evidence(BaseModel):
    """An item of the history that counts for an item of the list."""

    item: str
    count: float
    amount: float


class Reason(BaseModel):
    """See :data:`recbole_cafe.recommend.explain.REASON`."""

    text: str
    evidence: list[Evidence] | None
    weight: float | None
    intent_probability: float | None
    share_in_intent: float | None
    popularity_share: float | None
    item_relevance: float | None
    intent_relevance: float | None


class Item(BaseModel):
    """An item of a list. It has the rank, similarity, probability or score that was asked for."""

    item: str
    title: str | None = None
    intent: str | None
    rank: int | None = None
    probability: float | None = None
    score: float | None = None
    similarity: float | None = None
    reason: Reason | None = None


class Answer(BaseModel):
    """What all answers have: who gave it."""

    model: str
    version: str


class OneList(BaseModel):
    """The list of a history."""

    items: list[Item]
    unknown: list[str] = Field(description="Items of the history that the model does not know; left out of it.")


class Lists(Answer):
    """The lists, in the order of the histories."""

    lists: list[OneList]


class Items(Answer):
    """Items, the best first."""

    items: list[Item]


class ScoredItems(Answer):
    """Items in the order of the question."""

    items: list[Item]
    unknown: list[str]


class Intent(BaseModel):
    """An intent; null is that of items without one. It has a probability, or a score where that is all there is."""

    intent: str | None
    probability: float | None = None
    score: float | None = None


class Intents(Answer):
    """Intents, the likeliest first."""

    intents: list[Intent]
    unknown: list[str]


class Model(BaseModel):
    """A bundle that is served."""

    name: str
    model: str
    version: str
    items: int
    intents: int
    score: str = Field(description="What the numbers in a list are: probability or score.")
    titles: bool
    tells_reasons: bool
    tells_intents: bool
    data: str | None
    since: float = Field(description="Seconds since 1970.")


class Models(BaseModel):
    """The bundles, the default first."""

    models: list[Model]


class ModelHealth(BaseModel):
    """How a bundle is."""

    version: str
    problem: str | None = Field(description="Why the bundle in the folder is not the one that answers.")


class Health(BaseModel):
    """`ok`, or `degraded` if a new bundle could not take the place of an old one, which goes on answering."""

    status: str
    waiting: int
    models: dict[str, ModelHealth]


class Problem(BaseModel):
    """What is wrong with a request."""

    error: str
    field: str | None

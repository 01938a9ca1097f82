"""What speaks for and against looking a turn up: relations only, none of a product's words.

How near the turn lies to the facts, to what customers ask of any product, to everyday talk and to
questions about the wide world; whether it reads as a customer's, whatever is sold (a direction
among the vectors, fitted); its form (question, wish, a follow-up's beginning); names, words and
numbers that it shares with the facts; and the same of the talk just before it. `Evidence.of` gives
one number a relation, in the order of `RELATIONS`; `router.py` weighs them. English only.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import ConfigError
from engine.lookup.knowledge import Found, Knowledge, terms
from engine.lookup.vectors import WIDTH, SentenceVectors

TALK_FILE = Path(__file__).parents[2] / "assets" / "talk.toml"
SENTENCES_EACH = 4000  # of a base of facts; a larger one is known by its sections
SECTION_CHARS = 300  # of a section that stands for itself
LAST_WORDS = 16  # of what was said before the turn: a vector costs time by its words
SHORT_WORDS, TINY_WORDS = 4, 2
MOST_ODDS = 6.0  # that one direction may speak for or against
NO_LIMIT = 2.0  # a cosine that no pair of sentences reaches

QUESTION_WORD = (
    r"(?:who|whose|what|which|when|where|why|how|whats|hows|wheres|am|shall|may|might|any|got|"
    r"(?:is|are|was|were|do|does|did|could|would|should|have|has|had)(?:n't|nt)?|"
    r"can(?:'t)?|will|won't)"
)
LEAD_IN = re.compile(
    r"(?:(?:and|so|well|oh|ok|okay|um|uh|er|hmm?|but|also|then|yes|yeah|yep|no|nope|right|great|good|"
    r"alright|all right|hi|hello|hey|thanks|thank you|now|actually|please|sorry|cool|nice|sure|"
    r"i see|got it|there|wait|hang on|listen|really|or|like)\b[^a-z]*)+"
)
ASKS_FIRST = re.compile(QUESTION_WORD + r"\b")
ASKS_ANYWHERE = re.compile(
    r"\b(?:what about|how about|how much|how many|how long|how far|how soon|what if|what is|what's|"
    r"whats|can you|could you|do you|are you|is there|is it|does it|would it|can i|could i|do i|"
    r"would i|isn't it|right$|or not$)"
)
ASKS_LAST = re.compile(
    r"\b(?:isn't it|aren't you|don't you|do you|does it|can you|can't you|is it|right|or what|"
    r"or no|or)\W*$"
)
CLAUSE_QUESTION = re.compile(
    r"(?<=\s)(?=(?:what|what's|whats|how|how's|where|where's|when|when's|who|who's|which|why|why's|"
    r"do you|do i|do we|does|did you|can i|can you|can we|can my|could i|could you|could we|could|"
    r"would you|would i|would it|would that|is there|is it|is that|is the|are you|are there|"
    r"have you got|isn't|aren't|don't you|shall i|should i|will i|will it|anything|any)\b)",
    re.IGNORECASE,
)
WISHES = re.compile(
    r"\b(?:tell me|show me|give me|let me know|compare|run me through|explain|"
    r"i(?:'d| would) (?:like|love|rather|want|need)|"
    r"i (?:want|wanna|need|wanted|was told|heard|have heard|wonder)|"
    r"i(?:'m| am| was) (?:just )?(?:wondering|curious|asking|looking|after|interested)|"
    r"wants? to know|i've heard|i meant?|not the|suppose|let's say|please)\b"
)
FOLLOWS = re.compile(
    r"(?:and|but|or|what about|how about|even|also|not|only|for|with|no i meant?|then|so|since|"
    r"up to|until)\b"
)
TAKES_NOTE = re.compile(
    r"(?:okay|ok|alright|right|great|good|cool|nice|fine|thanks|thank you|i see|ah|oh|wow|hm+|mm+|"
    r"well|perfect|lovely|sweet|fair|yeah|yes|yep|no|nope|sure|got it|brilliant|wonderful|super|"
    r"phew|not bad)\b"
)
OF_MYSELF = re.compile(r"\b(?:i|my|me|we|our|i'm|i've|i'd|he|she|his|her)\b")
OF_YOU = re.compile(r"\b(?:you|your|yours|you're|you've)\b")
CORRECTS = re.compile(
    r"\b(?:i meant?|i was asking|i asked|i said|no wait|not the|not that|sorry not|actually)\b"
)
OPINION = re.compile(
    r"\b(?:do you (?:think|believe|like|dream|sleep|know how|ever|get (?:tired|cold))|"
    r"have you (?:ever|seen|read|heard)|did you (?:see|watch|hear|know)|would you rather|"
    r"guess (?:what|how|who)|you know what|is it me|what's your|what do you think|how are you|"
    r"how's your|your favou?rite)\b"
)
REFERS = re.compile(
    r"\b(?:it|its|that|this|they|them|those|these|ones?|there|then|both|either|other|same|else)\b"
)
MADE_UP_MIND = re.compile(r"\b(?:never mind|forget it|forget about it)$")

RELATIONS = (
    "facts", "everyday", "customers", "named", "words", "words_share", "topic",  # nearness
    "written_question", "asks_anywhere", "wishes", "follows", "short", "asks_you", "asks_for_me",
    "opinion", "asks_as_customer",  # form
    "agent_facts", "user_facts", "user_everyday", "joined_facts", "joined_everyday",
    "joined_customers", "begins", "shared_terms", "agent_knew_not", "agent_asked", "note_after",
    "correction_after", "question_after", "tiny_after", "tiny_question_after", "myself_after",
    "world", "joined_world", "user_world", "facts_unusual", "topic_unusual",  # and the wide world
    "refers", "refers_after", "asks_you_facts", "impersonal", "impersonal_facts", "no_terms",
    "unmarked_asks_anywhere", "unmarked_everyday", "unmarked_customers", "unmarked_facts",
    "unmarked_asks_as_customer", "unmarked_short", "unmarked_begins",  # as a recogniser writes it
    "reads_as_customer",
)  # fmt: skip
UNMARKED = [
    RELATIONS.index(name.removeprefix("unmarked_"))
    for name in RELATIONS
    if name.startswith("unmarked_")
]


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished turn of the user, and what was said just before it, if anything."""

    text: str
    agent_before: str = ""  # between the user's last turn and this one
    user_before: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """How a turn is put, from its words alone."""

    asks: bool  # somewhere in it
    asks_anywhere: bool
    wishes: bool
    follows: bool
    corrects: bool
    takes_note: bool
    of_myself: bool
    of_you: bool
    opinion: bool
    refers: bool
    mark: float  # 1 a question mark, -1 none where there is punctuation, 0 no punctuation at all
    words: int


def plain(text: str) -> str:
    return text.lower().replace("’", "'").strip(" .,!…-")


def read_form(text: str) -> Form:
    lower = plain(text)
    unmarked = lower.replace("?", "")
    anywhere = bool(ASKS_ANYWHERE.search(unmarked))
    clauses = [_begins_as_question(plain(clause)) for clause in split_clauses(text)]
    marked = 1.0 if "?" in text else -1.0 if re.search(r"[.!,…]", text) else 0.0
    return Form(
        asks=anywhere or any(clauses) or bool(ASKS_LAST.search(unmarked)),
        asks_anywhere=anywhere,
        wishes=bool(WISHES.search(lower)),
        follows=bool(FOLLOWS.match(lower)),
        corrects=bool(CORRECTS.search(lower)),
        takes_note=bool(TAKES_NOTE.match(lower)),
        of_myself=bool(OF_MYSELF.search(lower)),
        of_you=bool(OF_YOU.search(lower)),
        opinion=bool(OPINION.search(lower)),
        refers=bool(REFERS.search(lower)),
        mark=marked,
        words=len(lower.split()),
    )


def is_question(text: str) -> bool:
    """`And how much is it` and `Tell me about prices` ask; `Premium was great` does not."""
    form = read_form(text)
    if takes_back(text):
        return False
    return form.asks or form.wishes or form.mark > 0


def takes_back(text: str) -> bool:
    return bool(MADE_UP_MIND.search(plain(text)))


def _begins_as_question(clause: str) -> bool:
    lead = LEAD_IN.match(clause)
    return bool(ASKS_FIRST.match(clause, lead.end() if lead else 0))


def split_clauses(text: str) -> list[str]:
    """The sentences of a turn, the questions that begin inside them, and all of it."""
    sentences = [part for part in re.split(r"(?<=[.?!…;])\s+|\s+[-–—]\s+", text) if part.strip()]
    clauses = list(sentences)
    for sentence in sentences:
        starts = [match.start() for match in CLAUSE_QUESTION.finditer(sentence)]
        for start in {*starts[:1], *starts[-1:]}:
            if len(sentence[start:].split()) >= 3:
                clauses.append(sentence[start:])
    return list(dict.fromkeys([*clauses, text]))[:8]


@dataclass(frozen=True, slots=True)
class TalkBank:
    """Sentences that a turn is compared with, whatever the product."""

    everyday: tuple[str, ...]
    world: tuple[str, ...]
    customers: tuple[str, ...]
    knows_not: tuple[str, ...]  # an agent that has no answer


def load_talk(path: Path = TALK_FILE) -> TalkBank:
    """Raises ConfigError naming what is wrong in the file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        banks = ("everyday", "world", "customer", "knows_not")
        return TalkBank(*(tuple(map(str, data[bank])) for bank in banks))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name}: {error}; mend the file") from error


class Evidence:
    """Weighs turns against one base of facts. Slow to make (seconds); any thread.

    direction: of the vectors, in which turns read as a customer's [385], the last one a bias.
    ignored_from: sentences of the bank that lie nearer than this are passed over. The fitting of
    the weights uses it, so that they do not learn to trust sentences that were written for them.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        vectors: SentenceVectors,
        talk: TalkBank,
        direction: np.ndarray,
        ignored_from: float = NO_LIMIT,
    ) -> None:
        self.knowledge, self._vectors, self._ignored_from = knowledge, vectors, ignored_from
        self.direction = direction
        self._everyday = vectors.embed_facts(talk.everyday, TALK_FILE.parent / "everyday")
        self._world = vectors.embed_facts(talk.world, TALK_FILE.parent / "world")
        self._customers = vectors.embed_facts(talk.customers, TALK_FILE.parent / "customers")
        self._knows_not = vectors.embed(talk.knows_not)
        sentences = [(s, i) for i, one in enumerate(knowledge.sections) for s in one.sentences()]
        if len(sentences) > SENTENCES_EACH:
            sections = enumerate(knowledge.sections)
            sentences = [(section.sheet[:SECTION_CHARS], i) for i, section in sections]
        self._section = np.array([i for _, i in sentences])  # of each sentence
        self._facts = vectors.embed_facts([s for s, _ in sentences], knowledge.folder)
        topic = self._facts.mean(axis=0)
        self._topic = topic / np.linalg.norm(topic)
        others = np.concatenate([self._everyday, self._world])  # as near as chance brings it
        near, on_topic = (others @ self._facts.T).max(axis=1), others @ self._topic
        self._usual_facts = near.mean(), near.std()
        self._usual_topic = on_topic.mean(), on_topic.std()

    def of(self, turn: Turn) -> np.ndarray:
        """One number for each of RELATIONS, float64."""
        folded, named = self.knowledge.names.fold(turn.text)
        before, _ = self.knowledge.names.fold(turn.user_before)
        whole, user, agent = self._embed([folded, before, cut_start(turn.agent_before)])
        joined = join(whole, len(folded.split()), user, len(cut_start(before).split()))
        form, found = read_form(turn.text), self.knowledge.find(folded)
        asks = float(form.asks)
        impersonal = asks * (not (form.of_you or form.of_myself or form.refers))
        facts, topic = self._best(self._facts, whole), float(self._topic @ whole)
        agent_facts = self._best(self._facts, agent)
        user_facts = self._best(self._facts, user)
        near = max(agent_facts, user_facts)
        short = form.words <= SHORT_WORDS
        tiny = form.words <= TINY_WORDS
        said_before = set(terms(f"{turn.agent_before} {turn.user_before}"))
        own_terms = set(terms(turn.text))
        shared = len(own_terms & said_before) / max(1, len(own_terms))
        agent_asked = "?" in turn.agent_before or _begins_as_question(plain(turn.agent_before))
        relations = np.array(
            [
                facts,
                self._mean_of_best(self._everyday, whole, 5),
                self._mean_of_best(self._customers, whole, 5),
                named,
                found.score / (found.score + 2),
                found.score / (found.score + found.everyday + 0.5),
                topic,
                form.mark,
                form.asks_anywhere,
                form.wishes,
                form.follows,
                short,
                asks * form.of_you,
                asks * form.of_myself,
                form.opinion,
                asks * self._mean_of_best(self._customers, whole, 3),
                agent_facts,
                user_facts,
                self._best(self._everyday, user),
                self._best(self._facts, joined),
                self._best(self._everyday, joined),
                self._best(self._customers, joined),
                not turn.user_before,
                shared,
                self._best(self._knows_not, agent),
                agent_asked,
                form.takes_note * near,
                form.corrects * near,
                asks * near,
                tiny * near,
                short * max(0.0, form.mark) * near,
                form.of_myself * (1 - asks) * near,
                self._mean_of_best(self._world, whole, 5),
                self._best(self._world, joined),
                self._best(self._world, user),
                _compare(facts, *self._usual_facts),
                _compare(topic, *self._usual_topic),
                form.refers,
                form.refers * near,
                asks * form.of_you * facts,
                impersonal,
                impersonal * facts,
                not own_terms,
            ],
            float,
        )
        unmarked = relations[UNMARKED] * (form.mark == 0)
        return np.r_[relations, unmarked, read_along(self.direction, whole)]

    def vector(self, turn: Turn) -> np.ndarray:
        """[384]: of its words alone, the product's names as in the facts."""
        return self._embed([self.knowledge.names.fold(turn.text)[0]])[0]

    def rank(self, question: str, found: Found) -> tuple[int, ...]:
        """The sections that a question may be about, the best first: by meaning and by words."""
        folded, _ = self.knowledge.names.fold(question)
        nearness = np.full(len(self.knowledge.sections), -1.0)
        np.maximum.at(nearness, self._section, self._facts @ self._embed([folded])[0])
        by_words = np.zeros(len(nearness))
        by_words[list(found.order)] = 1 / (1 + np.arange(len(found.order)))
        return tuple(int(i) for i in np.argsort(-(nearness + 0.5 * by_words), kind="stable"))

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """[N, 384]; zero for nothing: it is near to nothing."""
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        some = [i for i, text in enumerate(texts) if text]
        vectors[some] = self._vectors.embed([texts[i] for i in some])
        return vectors

    def _near(self, bank: np.ndarray, vector: np.ndarray) -> np.ndarray:
        cosines = bank @ vector
        if bank is not self._facts:
            cosines = np.where(cosines > self._ignored_from, -0.1, cosines)
        return cosines

    def _best(self, bank: np.ndarray, vector: np.ndarray) -> float:
        return float(self._near(bank, vector).max())

    def _mean_of_best(self, bank: np.ndarray, vector: np.ndarray, count: int) -> float:
        return float(np.sort(self._near(bank, vector))[-count:].mean())


def join(one: np.ndarray, words: int, other: np.ndarray, others_words: int) -> np.ndarray:
    """Of two texts together, about: their vectors [384] by their words, at unit length.

    A third of the time that the model itself would take for a turn, and decides as well.
    """
    both = one * words + other * others_words
    return both / max(1e-9, float(np.linalg.norm(both)))


def cut_start(text: str) -> str:
    return " ".join(text.split()[-LAST_WORDS:])


def _compare(nearness: float, usual: float, spread: float) -> float:
    """How far a nearness lies above that of talk about anything else, in its spreads."""
    return float((nearness - usual) / spread)


def read_along(direction: np.ndarray, vector: np.ndarray) -> float:
    """How far a vector [384] lies in a direction [385], whose last number is a bias."""
    return float(np.clip(direction[:-1] @ vector + direction[-1], -MOST_ODDS, MOST_ODDS))

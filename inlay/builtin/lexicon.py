"""The words of the built-in base: everything its skills and demo tasks talk about. Data only.

The tokenizer keeps each of these whole (with its leading space), so a word is one token wherever it stands.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("""
    dog cat horse cow sheep goat pig mouse rabbit fox wolf bear lion tiger monkey duck goose hen
    eagle owl frog snake whale shark
""")
FRUITS = _words("""
    apple pear plum peach cherry grape lemon lime orange melon mango banana fig kiwi apricot berry
""")
COLOURS = _words("red blue green yellow black white brown pink grey purple")
CLOTHES = _words("shirt coat hat scarf glove sock shoe boot dress skirt jacket belt sweater cap")
TOOLS = _words("hammer saw drill rake shovel ladder brush knife axe wrench pliers chisel")
FURNITURE = _words("table chair desk bed sofa shelf lamp bench mirror stool cupboard drawer")
DRINKS = _words("water milk tea coffee juice wine beer cocoa")
VEHICLES = _words("car bus train truck bike boat plane tram van ferry")

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "fruit": FRUITS,
    "colour": COLOURS,
    "piece of clothing": CLOTHES,
    "tool": TOOLS,
    "piece of furniture": FURNITURE,
    "drink": DRINKS,
    "vehicle": VEHICLES,
}

NATURE = _words("river stone cloud forest hill lake island storm flower leaf tree field beach snow")
OBJECTS = _words("""
    book letter ticket key bottle box basket clock camera phone picture window door candle blanket
    pencil paper wheel rope bell coin ring spoon plate cup drum
""")
OFFICE = _words("""
    invoice payment refund card account password login parcel delivery courier address order product
    price contract meeting report screen keyboard printer router network battery cable charger
    device discount subscription quote receipt email server website manager office job interview
    salary
""")
ADJECTIVES = _words("""
    small big old new clean dirty heavy light warm cold soft hard round broken empty full quiet loud
    cheap fine
""")

# Words a customer writes; lists use them too, so that their embeddings are trained before a task needs them.
MESSAGE_WORDS = _words("""
    late lost missing wrong slow damaged twice charged locked cracked offline dead urgent soon today
    arrived stopped working failed hello thanks again still never cannot need want buy send return
    change cancel open reset forgot bill bank team hired apply vacancy
""")

NOUNS: tuple[str, ...] = (
    ANIMALS + FRUITS + CLOTHES + TOOLS + FURNITURE + DRINKS + VEHICLES + NATURE + OBJECTS + OFFICE
)
LIST_WORDS: tuple[str, ...] = NOUNS + COLOURS + ADJECTIVES + MESSAGE_WORDS

NAMES = _words("""
    Anna Tom Maria Paul Lisa Peter Sara David Emma Jack Nina Oscar Julia Frank Laura Simon Clara
    Martin Ella Robert Alice Hugo Diana Victor Irene Felix Ruth Leon Grace Adam
""")
CITIES = _words("""
    Paris London Rome Berlin Madrid Vienna Lisbon Oslo Dublin Prague Athens Warsaw Zurich Milan
    Geneva Boston Chicago Denver Tokyo Sydney
""")
ROOMS = _words("kitchen garden garage hall cellar attic library office")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
JOBS = _words("teacher doctor baker farmer pilot nurse painter driver lawyer writer")

# (order, present, past): "Paint the box.", "paints", "painted".
VERBS: tuple[tuple[str, str, str], ...] = tuple(
    (stem.capitalize(), stem + "s", past)
    for stem, past in (
        ("open", "opened"), ("clean", "cleaned"), ("paint", "painted"), ("move", "moved"), ("lift", "lifted"),
        ("pack", "packed"), ("return", "returned"), ("order", "ordered"), ("repair", "repaired"),
        ("collect", "collected"), ("check", "checked"), ("print", "printed"), ("cancel", "canceled"),
        ("sign", "signed"), ("close", "closed"), ("send", "sent"), ("find", "found"), ("bring", "brought"),
        ("buy", "bought"), ("sell", "sold"),
    )
)  # fmt: skip

# Kept whole by the tokenizer for further tasks about customers' messages, though no skill trains them.
SPARE_WORDS = _words("careers Careers CAREERS sales Sales SALES We we Can When about applied ask get")

"""How a person reads what is written short: prices, dates, units, signs, addresses, abbreviations.

`READINGS` is the whole table: a pattern and what is said for it, the most special first. A part of
a text that a row has taken is left alone by the rows below. Each row has its texts in
tests/dialogue/test_readings.py. English only; digits are ASCII here (`text.py` sees to that).
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unicode_rbnf import RbnfEngine

Reading = tuple[re.Pattern, Callable[[re.Match], str]]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DOLLARS = ("dollar", "dollars", "cent", "cents")
CURRENCIES = {  # one, many, and the same of the hundredth
    "$": DOLLARS,
    "US$": ("US dollar", "US dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "R$": ("real", "reais", "centavo", "centavos"),
    "MX$": ("Mexican peso", "Mexican pesos", "centavo", "centavos"),
    "kr": ("krona", "kronor", "ore", "ore"),
    "zł": ("zloty", "zlotys", "grosz", "groszy"),
    "Rs": ("rupee", "rupees", "paisa", "paise"),
    "Rs.": ("rupee", "rupees", "paisa", "paise"),
    "Fr.": ("Swiss franc", "Swiss francs", "centime", "centimes"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "jeon", "jeon"),
    "₽": ("ruble", "rubles", "kopek", "kopeks"),
    "₺": ("lira", "lira", "kurus", "kurus"),
    "₪": ("shekel", "shekels", "agora", "agorot"),
    "₫": ("dong", "dong", "xu", "xu"),
    "₴": ("hryvnia", "hryvnias", "kopek", "kopeks"),
    "₱": ("peso", "pesos", "centavo", "centavos"),
    "฿": ("baht", "baht", "satang", "satang"),
    "USD": ("US dollar", "US dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("British pound", "British pounds", "penny", "pence"),
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"),
    "JPY": ("Japanese yen", "Japanese yen", "sen", "sen"),
    "CNY": ("Chinese yuan", "Chinese yuan", "fen", "fen"),
    "INR": ("Indian rupee", "Indian rupees", "paisa", "paise"),
    "AUD": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "CAD": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "NZD": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "SEK": ("Swedish krona", "Swedish kronor", "ore", "ore"),
    "NOK": ("Norwegian krone", "Norwegian kroner", "ore", "ore"),
    "DKK": ("Danish krone", "Danish kroner", "ore", "ore"),
    "PLN": ("Polish zloty", "Polish zlotys", "grosz", "groszy"),
    "MXN": ("Mexican peso", "Mexican pesos", "centavo", "centavos"),
    "BRL": ("Brazilian real", "Brazilian reais", "centavo", "centavos"),
    "TRY": ("Turkish lira", "Turkish lira", "kurus", "kurus"),
    "KRW": ("Korean won", "Korean won", "jeon", "jeon"),
    "BTC": ("Bitcoin", "Bitcoin", "", ""),
    "ETH": ("Ether", "Ether", "", ""),
}
MAGNITUDES = {
    "k": "thousand", "thousand": "thousand", "m": "million", "mn": "million", "mio": "million",
    "mm": "million", "million": "million", "b": "billion", "bn": "billion", "billion": "billion",
    "t": "trillion", "tn": "trillion", "trillion": "trillion",
}  # fmt: skip
PERIODS = {
    "mo": "month", "mth": "month", "month": "month", "yr": "year", "y": "year", "year": "year",
    "wk": "week", "week": "week", "d": "day", "day": "day", "h": "hour", "hr": "hour",
    "hour": "hour", "min": "minute", "minute": "minute", "s": "second", "sec": "second",
    "second": "second", "night": "night", "quarter": "quarter",
}  # fmt: skip
UNIT_NAMES = {  # written with its capitals
    "ns": "nanosecond", "µs": "microsecond", "us": "microsecond", "ms": "millisecond",
    "s": "second", "sec": "second", "secs": "second", "min": "minute", "mins": "minute",
    "h": "hour", "hr": "hour", "hrs": "hour", "d": "day", "wk": "week", "wks": "week",
    "mo": "month", "mos": "month", "yr": "year", "yrs": "year", "nm": "nanometer",
    "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer",
    "ft": "foot", "in": "inch", "yd": "yard", "mi": "mile", "m^2": "square meter",
    "km^2": "square kilometer", "cm^2": "square centimeter", "ft^2": "square foot",
    "m^3": "cubic meter", "cm^3": "cubic centimeter", "s^2": "second squared",
    "sq ft": "square foot", "ha": "hectare", "ml": "milliliter", "mL": "milliliter",
    "cl": "centiliter", "dl": "deciliter", "l": "liter", "L": "liter", "gal": "gallon",
    "fl oz": "fluid ounce", "µg": "microgram", "mg": "milligram", "g": "gram", "kg": "kilogram",
    "t": "ton", "lb": "pound", "lbs": "pound", "oz": "ounce", "bit": "bit", "kB": "kilobyte",
    "KB": "kilobyte", "kb": "kilobyte", "MB": "megabyte", "mb": "megabyte", "GB": "gigabyte",
    "gb": "gigabyte", "TB": "terabyte", "tb": "terabyte", "PB": "petabyte", "KiB": "kibibyte",
    "MiB": "mebibyte", "GiB": "gibibyte", "Mb": "megabit", "Gb": "gigabit", "kbit": "kilobit",
    "Mbit": "megabit", "Gbit": "gigabit", "bps": "bit per second",
    "kbps": "kilobit per second", "Kbps": "kilobit per second", "Mbps": "megabit per second",
    "Gbps": "gigabit per second", "mph": "mile per hour", "mpg": "mile per gallon",
    "kph": "kilometer per hour", "kmh": "kilometer per hour", "fps": "frame per second",
    "rpm": "revolution per minute", "RPM": "revolution per minute", "bpm": "beat per minute",
    "wpm": "word per minute", "dpi": "dot per inch", "ppm": "part per million", "Hz": "hertz",
    "hz": "hertz", "kHz": "kilohertz", "khz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz",
    "dB": "decibel", "dBFS": "decibel full scale", "W": "watt", "kW": "kilowatt", "MW": "megawatt",
    "kWh": "kilowatt hour", "Wh": "watt hour", "V": "volt", "kV": "kilovolt", "mV": "millivolt",
    "A": "amp", "mA": "milliamp", "mAh": "milliamp hour", "Ω": "ohm", "kcal": "kilocalorie",
    "cal": "calorie", "mol": "mole", "mmol": "millimole", "µmol": "micromole",
    "J": "joule", "kJ": "kilojoule", "N": "newton", "Pa": "pascal",
    "kPa": "kilopascal", "hPa": "hectopascal", "psi": "P S I", "bar": "bar", "px": "pixel",
    "MP": "megapixel", "pt": "point", "pts": "point", "qt": "quart", "tbsp": "tablespoon",
    "tsp": "teaspoon", "ct": "carat", "pp": "percentage point", "°C": "degree Celsius",
    "° C": "degree Celsius", "° F": "degree Fahrenheit", "°F": "degree Fahrenheit", "°": "degree",
    "°K": "kelvin", "%": "percent", "‰": "per mille",
}  # fmt: skip
ODD_PLURALS = {
    "foot": "feet", "inch": "inches", "square foot": "square feet",
    "second squared": "seconds squared", "hertz": "hertz", "kilohertz": "kilohertz",
    "megahertz": "megahertz", "gigahertz": "gigahertz", "decibel full scale": "decibels full scale",
    "P S I": "P S I", "degree Celsius": "degrees Celsius",
    "degree Fahrenheit": "degrees Fahrenheit", "percent": "percent", "per mille": "per mille",
}  # fmt: skip


def pluralize(name: str) -> str:
    """`liter` -> `liters`, `bit per second` -> `bits per second`, `foot` -> `feet`."""
    head, per, rest = name.partition(" per ")
    return ODD_PLURALS.get(name) or f"{head}s{per}{rest}"


UNITS = {sign: (name, pluralize(name)) for sign, name in UNIT_NAMES.items()}  # one, many
ATTACHED_ONLY = {"in", "d", "t", "A", "J", "N", "pt", "bar", "us"}  # words or names elsewhere
FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5),
    "⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8),
    "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
ABBREVIATIONS = {  # with the dots as they are written
    "e.g.": "for example", "eg.": "for example", "i.e.": "that is", "vs.": "versus",
    "vs": "versus", "approx.": "approximately", "a.k.a.": "also known as", "aka": "also known as",
    "incl.": "including", "excl.": "excluding", "dept.": "department", "govt.": "government",
    "w/o": "without", "w/": "with", "b/c": "because", "c/o": "care of", "N/A": "not applicable",
    "n/a": "not applicable", "ca.": "circa", "cf.": "compare", "Ph.D.": "P H D",
    "PhD": "P H D", "viz.": "namely", "misc.": "miscellaneous", "resp.": "respectively",
    "min.": "minimum", "max.": "maximum", "avg.": "average", "tel.": "telephone",
    "et al.": "et al", "a.m.": "a m", "p.m.": "p m", "P.S.": "P S", "Q.E.D.": "Q E D",
    "p.a.": "per annum", "YoY": "year over year", "temp.": "temperature", "exc.": "excluding",
}  # fmt: skip
ENDINGS = {  # they may end a sentence as well
    "etc.": "et cetera", "Inc.": "Incorporated", "Ltd.": "Limited", "Corp.": "Corporation",
    "Jr.": "Junior", "Sr.": "Senior", "Ave.": "Avenue", "Blvd.": "Boulevard", "Rd.": "Road",
    "Bros.": "Brothers",
}  # fmt: skip
TITLES = {  # before a name
    "Dr": "Doctor", "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Prof": "Professor",
    "St": "Saint", "Mt": "Mount", "Ft": "Fort", "Gen": "General", "Sgt": "Sergeant",
    "Capt": "Captain", "Lt": "Lieutenant", "Col": "Colonel", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Rev": "Reverend", "Hon": "Honorable", "Pres": "President",
}  # fmt: skip
BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "fig": "figure", "vol": "volume", "p": "page", "pp": "pages",
    "ch": "chapter", "sec": "section", "ext": "extension", "art": "article", "ver": "version",
    "eq": "equation", "tab": "table", "c": "circa", "rev": "revision", "apt": "apartment",
    "rm": "room", "ste": "suite", "bldg": "building",
}  # fmt: skip
STREETS = {
    "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane", "Pkwy": "Parkway",
    "Hwy": "Highway", "Sq": "Square", "St": "Street", "Dr": "Drive", "Ct": "Court", "Pl": "Place",
}  # fmt: skip
SIDES_OF_TOWN = {"N": "north", "S": "south", "E": "east", "W": "west"}
COMPASS = SIDES_OF_TOWN | {a + b: SIDES_OF_TOWN[a] + SIDES_OF_TOWN[b] for a in "NS" for b in "EW"}
SIDE = "[NS][EW]|[NSEW]"
NEXT_SENTENCE = "It|The|We|I|He|She|They|You|There|This|That|In|On|At"
NUMBERED = (  # what Roman numerals count
    "Chapter|Part|Volume|Vol|Act|Scene|Section|Book|Phase|Type|Level|War|Bowl|Title|Article|"
    "Appendix|Episode|Season|Class|Stage|Figure|Table|Round|Grade|Tier|Unit|Lesson|Step|Mark|"
    "Schedule|Category|Group|Division|Symphony|Sonata|Olympiad"
)
RULERS = (
    "Henry|Louis|Elizabeth|Charles|George|William|Edward|James|Richard|Mary|Philip|Paul|Benedict|"
    "Pius|Leo|Francis|Napoleon|Catherine|Nicholas|Alexander|Frederick|Wilhelm|Friedrich|Ferdinand|"
    "Carlos|Felipe|Harald|Margrethe|Peter|Ivan|Otto|Ramses|Ramesses|John|Gregory|Innocent|Clement|"
    "Urban|Boniface|Victoria|Anne|Robert|David|Malcolm|Alfonso|Albert|Leopold|Christian|Gustav|"
    "Haakon|Olav|Oscar|Victor|Umberto|Mehmed|Murad|Selim|Suleiman|Amenhotep|Thutmose|Xerxes|Darius"
)
PRICED = (  # what a price is put before
    "plan|subscription|fee|bill|coupon|discount|credit|deposit|tier|package|rate|voucher|gift card"
)
COUNTED = "ID|PIN|PIN code|code|account|order|ticket|invoice|reference|card|tracking|zip|error|HTTP"
PLACED = (
    "room|rm\\.?|suite|flight|apartment|apt\\.?|unit|ext\\.?|extension|highway|route|gate|seat|bus"
)
WORDLY_PAIRS = {"and/or": "and or", "either/or": "either or", "on/off": "on off"}
SIDES = {"input", "read", "client", "start", "push", "before", "stop", "on", "owner", "import"}
VERSIONED = (
    "Python|Node|Java|Ubuntu|iOS|iPadOS|Android|macOS|PHP|Ruby|Go|CUDA|PyTorch|Chrome|Firefox|"
    "Safari|Django|React|Debian|Swift|Rust|Kubernetes|Bluetooth|Fedora|Postgres"
)
DOMAINS = (
    "com|org|net|io|ai|dev|app|co|edu|gov|eu|info|tv|de|uk|fr|ch|nl|xyz|tech|cloud|biz|us|ca|jp|gg"
)
FILES = (
    "txt|md|pdf|py|js|ts|tsx|jsx|json|csv|tsv|png|jpg|jpeg|gif|svg|html|htm|css|docx|doc|xlsx|xls|"
    "pptx|ppt|zip|tar|gz|mp3|mp4|wav|ogg|flac|avi|mov|m4a|mkv|webm|yaml|yml|toml|xml|sh|exe|cpp|rs|"
    "go|java|log|ini|cfg|srt|vtt|dll|iso|bin|sql|rb|php|ipynb|lock|env|bat|apk|dmg"
)
ADDRESS_SIGNS = {
    ".": "dot", "/": "slash", "_": "underscore", "-": "dash", "@": "at", "+": "plus",
    ":": "colon", "~": "tilde", "\\": "backslash", "?": "question mark", "=": "equals",
    "&": "and", "%": "percent",
    "#": "hash",
}  # fmt: skip

# -- numbers ---------------------------------------------------------------------------------------


@functools.cache
def _number_speller() -> "RbnfEngine":
    """The rules of the Unicode consortium for English, read once and only when needed."""
    from unicode_rbnf import RbnfEngine

    return RbnfEngine.for_language("en")


@functools.lru_cache(4096)
def format_number(number: int, to: str = "cardinal") -> str:
    """A whole number as a `cardinal`, an `ordinal` or a `year`, without hyphens and `and`."""
    from unicode_rbnf import FormatPurpose

    text = _number_speller().format_number(number, FormatPurpose[to.upper()]).text
    return text.replace(" and ", " ").replace("-", " ").replace(",", "")


def say_digits(digits: str) -> str:
    return " ".join(DIGITS[int(digit)] for digit in digits if digit.isdecimal())


def split_number(number: str) -> tuple[str, str]:
    """`1,200.50`, `1.200,50` and `1 200,5` as (whole, decimals), by what the marks can mean."""
    number = number.replace(" ", "")
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", number):
        number = number.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d+,\d{1,2}", number):
        number = number.replace(",", ".")
    whole, _, decimals = number.replace(",", "").partition(".")
    return whole, decimals


def say_number(number: str) -> str:
    """`1,200.50` -> `one thousand two hundred point five zero`; long digit runs digit by digit."""
    whole, decimals = split_number(number)
    if len(whole) > 12 or (len(whole) > 1 and whole[0] == "0"):
        spoken = say_digits(whole)
    else:
        spoken = format_number(int(whole)) if whole else ""
    return f"{spoken} point {say_digits(decimals)}".strip() if decimals else spoken


def say_count(number: str, name: str) -> str:
    return f"{say_number(number)} {name if number == '1' else pluralize(name)}"


def say_year(year: int | str) -> str:
    year = int(year)
    if 2000 <= year <= 2009 or not 1000 <= year <= 9999:
        return format_number(year)
    return format_number(year, to="year")


def say_pairs(number: str) -> str:
    """`4090` -> `forty ninety`, `737` -> `seven thirty seven`, `192` -> `one ninety two`."""
    if number[0] == "0" and len(number) > 1:
        return say_digits(number)
    head, tail = number[:-2], number[-2:]
    if not head or number.endswith("000"):
        return format_number(int(number))
    if tail == "00":
        return f"{format_number(int(head))} hundred"
    rest = f"oh {DIGITS[int(tail)]}" if tail[0] == "0" else format_number(int(tail))
    return f"{format_number(int(head))} {rest}"


def say_fraction(top: int, bottom: int) -> str:
    if bottom == 2:
        name = "half" if top == 1 else "halves"
    elif bottom == 4:
        name = "quarter" if top == 1 else "quarters"
    else:
        name = format_number(bottom, to="ordinal") + ("" if top == 1 else "s")
    return f"{format_number(top)} {name}"


# -- patterns --------------------------------------------------------------------------------------

NUMBER = (
    r"(?:\d{1,3}(?: \d{3})+,\d\d(?!\d)|\d{1,3}(?: \d{3}){2,}(?![\d])|"
    r"\d{1,3}(?:\.\d{3})+,\d{1,2}(?!\d)|\d{1,3}(?:,\d{2,3})+"
    r"(?:\.\d+)?(?!\d)"
    r"|\d+,\d{1,2}(?![\d,])|\d+(?:\.\d+)?|\.\d+)"
)  # fmt: skip
START = r"(?<![\w.,])"  # not in the middle of a word or of a number
SIGN = r"(?P<sign>(?<![\w)])[-−–+])?"
DASH = r"\s?[-–—]\s?"
DOT = r"(?:\.(?=[,;:)]| [a-z\d(]))?"  # of an abbreviation; not the one that ends a sentence
BY = (
    r"(?P<left>\d+(?:\.\d+)?) ?[x×] ?(?P<right>\d+(?:\.\d+)?)"
    r"(?: ?[x×] ?(?P<third>\d+))?"
)


def one_of(words: object) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


CURRENCY = one_of(CURRENCIES)
MEASURE = one_of(unit for unit in UNITS if len(unit) > 1 and unit.isalpha() and unit != "in")
MAGNITUDE = one_of(MAGNITUDES)
PERIOD = one_of(PERIODS)
MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" for name in MONTHS) + "|Sept"
DAY = "|".join(f"{name[:3]}(?:{'|'.join((name[3:], 's', 'r', 'rs'))})?" for name in DAYS)


def sign_of(match: re.Match) -> str:
    return {"+": "plus ", None: "", "": ""}.get(match["sign"], "minus ")


def read_price(match: re.Match) -> str:
    """Money, with its range, its magnitude and what it buys."""
    symbol = match["before"] or match["after"]
    one, many, small_one, small_many = CURRENCIES.get(symbol) or CURRENCIES[symbol.upper()]
    number, upto = match["number"], match["upto"]
    size, size_upto = match["size"], match["size_upto"]
    period = read_periods(match["per"] or "")
    if is_before_noun(match):
        many, small_many = one, small_one
    if upto:
        low = say_number(number) + (f" {MAGNITUDES[size.lower()]}" if size else "")
        high = say_number(upto) + (f" {MAGNITUDES[size_upto.lower()]}" if size_upto else "")
        return f"{low} to {high} {many}{period}"
    whole, decimals = split_number(number)
    if size:
        return f"{sign_of(match)}{say_number(number)} {MAGNITUDES[size.lower()]} {many}{period}"
    if not decimals or not int(decimals):
        count = say_number(whole or "0")
        return f"{sign_of(match)}{count} {one if whole == '1' else many}{period}"
    if len(decimals) > 2 or not small_one:
        return f"{sign_of(match)}{say_number(number)} {many}{period}"
    cents = int(decimals.ljust(2, "0"))
    small = f"{format_number(cents)} {small_one if cents == 1 else small_many}"
    if not int(whole or 0):
        return f"{sign_of(match)}{small}{period}"
    major = f"{sign_of(match)}{say_number(whole)} {one if whole == '1' else many}"
    return f"{major} {format_number(cents)}{period}" if period else f"{major} and {small}"


def is_before_noun(match: re.Match) -> bool:
    """`a $14 plan`, `the $5 coupons`: what is counted is named by its one."""
    after = match.string[match.end() : match.end() + 60]  # not all of a long text for each price
    if re.search(r"\b[Aa]n? [$€£]?$", match.string[max(0, match.start() - 6) : match.start()]):
        return bool(re.match(r" (?!a\b|an\b|or\b|and\b|to\b|per\b)[A-Za-z]", after))
    return bool(re.match(rf" (?:[A-Z]\w* )?(?:{PRICED})s?\b", after))


def read_periods(per: str) -> str:
    """`/user/month` -> ` a user a month`."""
    words = [
        PERIODS.get(word.lower(), word) for word in re.findall(r"[A-Za-z]{2,}|[a-z](?!-)", per)
    ]
    words = [word for word in words if word != "per"]
    return "".join(f" {article(word)} {word}" for word in words)


def article(word: str) -> str:
    return "an" if word[0].lower() in "aeio" or word == "hour" else "a"


def read_quantity(match: re.Match) -> str:
    """A number, or a range, with its unit and what that is counted by."""
    unit, per = match["unit"] or match["close"], match["per"]
    number, upto = match["number"], match["upto"]
    one, many = UNITS[unit]
    spoken = f"{sign_of(match)}{say_number(number)}"
    if upto:
        spoken += f" to {say_number(upto)}"
    is_one = (number == "1" and not upto) or match["a"]
    name = one if is_one else many
    if per:
        name += f" per {UNITS[per][0]}"
    return f"{match['a'] or ''}{spoken} {name}"


def read_rate(match: re.Match) -> str:
    return f"{UNITS[match['unit']][1]} per {UNITS[match['per']][0]}"


def read_date(year: str | None, month: int, day: int, the: bool = False) -> str:
    ordinal = format_number(day, to="ordinal")
    told = f"the {ordinal} of {MONTHS[month - 1]}" if the else f"{MONTHS[month - 1]} {ordinal}"
    return f"{told}, {say_year(year)}" if year else told


def read_iso_date(match: re.Match) -> str:
    year, month, day = match["year"], int(match["month"]), int(match["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return " ".join(format_number(number) for number in (int(year), month, day))
    told = read_date(year, month, day)
    if match["hour"]:
        told += f", {say_clock(match['hour'], match['minute'], match['second'])}"
        told += {None: "", "Z": " UTC"}.get(match["zone"], f" {read_offset(match['zone'] or '')}")
    return told


def read_offset(zone: str) -> str:
    sign = "minus" if zone[:1] in "-−" else "plus"
    return f"{sign} {format_number(int(re.sub('[^0-9]', '', zone)[:2] or 0))}"


def read_number_date(match: re.Match) -> str:
    first, second, year = int(match["first"]), int(match["second"]), match["year"]
    if match["mark"] == "." or (first > 12 >= second):
        first, second = second, first  # the day first
        the = True
    else:
        the = False
    if not (1 <= first <= 12 and 1 <= second <= 31):
        return say_address(match[0])
    return read_date(year if len(year) == 4 else f"20{year}", first, second, the)


def find_month(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, 1) if month.startswith(name[:3].title()))


def find_day(name: str) -> str:
    return next(day for day in DAYS if day.startswith(name[:3]))


def read_month_day(match: re.Match) -> str:
    month, day = find_month(match["month"]), int(match["day"])
    if not 1 <= day <= 31:
        return f"{MONTHS[month - 1]} {say_number(match['day'])}"
    told = read_date(None, month, day)
    if match["upto"]:
        told += f" to {format_number(int(match['upto']), to='ordinal')}"
    return told + (f", {say_year(match['year'])}" if match["year"] else "")


def read_day_month(match: re.Match) -> str:
    return read_date(match["year"], find_month(match["month"]), int(match["day"]), the=True)


def say_clock(hour: str, minute: str | None, second: str | None = None, half: bool = False) -> str:
    """half: of the day, a.m. or p.m., is told too."""
    spoken, minutes = format_number(int(hour)), int(minute or 0)
    if minutes:
        spoken += f" {'oh ' if minutes < 10 else ''}{format_number(minutes)}"
    elif not half and minute is not None:
        spoken += " o'clock" if int(hour) <= 12 else " hundred"
    if second and int(second):
        spoken += f" and {format_number(int(second))} seconds"
    return spoken


def read_time(match: re.Match) -> str:
    half = match["half"]
    told = say_clock(match["hour"], match["minute"], match["second"], bool(half))
    if match["hour2"]:
        half2 = match["half2"]
        both = half or half2
        first = say_clock(match["hour"], match["minute"], None, bool(both))
        told = first + (f" {say_half(half)}" if half else "") + " to "
        told += say_clock(match["hour2"], match["minute2"], None, bool(both))
        half = half2
    return told + (f" {say_half(half)}" if half else "")


def say_half(half: str) -> str:
    letters = re.sub(r"[^A-Za-z]", "", half)
    return letters if letters.isupper() else f"{letters[0]} {letters[1]}"


def read_phone(match: re.Match) -> str:
    groups = re.findall(r"\d+|[A-Za-z]+", match[0])
    spoken = []
    for group in groups:
        if group.isalpha():
            spoken.append(group.lower())
        else:
            spoken.append("eight hundred" if group == "800" else say_digits(group))
    plus = "plus " if "+" in match[0][:1] else ""
    if plus or len(groups[0]) == 1:
        spoken[:2] = [" ".join(spoken[:2])]
    return plus + ", ".join(spoken)


def read_groups(match: re.Match) -> str:
    """`4111 1111 1111 1111`: the number of a card."""
    return ", ".join(say_digits(group) for group in re.findall(r"\d+", match[0]))


def say_address(text: str) -> str:
    """`foo_bar@x.io` -> `foo underscore bar at x dot io`."""
    words = []
    for part in re.findall(r"\d+|[^\W\d_]+|.", text):
        if part.isdecimal():
            words.append(say_number(part) if len(part) < 5 else say_digits(part))
        elif part[0].isalpha():
            words.append(part)
        else:
            words.append(ADDRESS_SIGNS.get(part, ""))
    return " ".join(words)


def read_url(match: re.Match) -> str:
    return say_address(match["host"])


def read_domain(match: re.Match) -> str:
    text = match[0]
    if text.lower().startswith("www."):
        return f"w w w dot {say_address(text[4:].partition('?')[0])}"
    return say_address(text.partition("?")[0].rstrip("/"))


def read_ip(match: re.Match) -> str:
    parts = match["ip"].split(".")
    if any(int(part) > 255 for part in parts):
        return " point ".join(say_number(part) for part in parts)
    told = " dot ".join(say_pairs(part) for part in parts)
    return f"{told} port {say_number(match['port'])}" if match["port"] else told


def read_version(match: re.Match) -> str:
    """`v1.2.3` -> `version one point two point three`."""
    told = " point ".join(say_number(part) for part in match["numbers"].split("."))
    more = re.findall(r"[A-Za-z]+|\d+", match["more"] or "")
    told += "".join(f" {say_number(word) if word.isdecimal() else word}" for word in more)
    return f"version {told}" if match["v"] else told


def read_slashed_numbers(match: re.Match) -> str:
    top, bottom = int(match["top"]), int(match["bottom"])
    if (top, bottom) in ((24, 7), (9, 11)) or top == bottom:
        return f"{format_number(top)} {format_number(bottom)}"
    if bottom in (10, 100) and 1 < top <= bottom:
        return f"{format_number(top)} out of {format_number(bottom)}"
    if 0 < top < bottom <= 100 and match["bottom"][0] != "0":
        return say_fraction(top, bottom)
    return f"{format_number(top)} over {format_number(bottom)}"


def read_mixed(match: re.Match) -> str:
    if match["sign"]:
        top, bottom = FRACTIONS[match["sign"]]
    else:
        top, bottom = int(match["top"]), int(match["bottom"])
    whole = f"{match['a'] or ''}{say_number(match['whole'])}"
    unit = f" {UNITS[match['unit']][0 if match['a'] else 1]}" if match["unit"] else ""
    if not 0 < top < bottom <= 100:
        return f"{whole} {format_number(top)} over {format_number(bottom)}{unit}"
    part = say_fraction(top, bottom)
    if top == 1:
        part = f"{article(part.split()[1])} {part.split()[1]}"
    return f"{whole} and {part}{unit}"


def read_decade(match: re.Match) -> str:
    head, tail = match["head"] or "", match["tail"]
    if tail == "00":
        return f"{format_number(int(head))} hundreds" if head != "20" else "two thousands"
    tens = format_number(int(tail))
    tens = "tens" if tail == "10" else f"{tens[:-1]}ies" if tens.endswith("y") else f"{tens}s"
    return f"{format_number(int(head))} {tens}" if head else tens


def say_many(digit: str) -> str:
    """`MP3s` -> `threes`."""
    return say_number(digit) + ("es" if digit == "6" else "s")


def read_many(text: str) -> str:
    """`mp3/wav` -> `mp three or wav`."""
    words = [word.lstrip(".") for word in text.split("/")]
    return " or ".join(re.sub(r"\d", lambda m: f" {DIGITS[int(m[0])]}", word) for word in words)


def parse_roman(text: str) -> int:
    """0: it is none."""
    values = dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000), strict=True))
    total = sum(
        -values[c] if values[c] < values.get(after, 0) else values[c]
        for c, after in zip(text, text[1:] + " ", strict=True)
    )
    marks = ((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"),
             (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))  # fmt: skip
    rest, canonical = total, ""
    for value, mark in marks:
        canonical += mark * (rest // value)
        rest %= value
    return total if canonical == text else 0


def read_roman(match: re.Match) -> str:
    number = parse_roman(match["roman"])
    if not number:
        return match[0]
    if match["name"] in RULERS.split("|"):
        return f"{match['name']} the {format_number(number, to='ordinal')}"
    return f"{match['name']} {format_number(number)}"


def read_range(match: re.Match) -> str:
    low, high = match["number"], match["upto"]
    is_years = re.fullmatch(r"1[1-9]\d\d|20\d\d", low) and re.fullmatch(r"1[1-9]\d\d|20\d\d", high)
    say = say_year if is_years else say_number
    return f"{sign_of(match)}{say(low)} {'' if low == high else 'to '}{say(high)}"


def read_inches(match: re.Match) -> str:
    """`a 27" monitor`, unless the mark closes a quotation."""
    number = say_number(match["number"])
    if match[0][-1] == '"' and match.string.count('"', 0, match.start()) % 2:
        return f'{match["a"] or ""}{number}"'
    return f"{match['a'] or ''}{number} {'inch' if match['a'] else 'inches'}"


def read_power(match: re.Match) -> str:
    base = match["base"]
    return say_power(say_number(base) if base[0].isdecimal() else base, match["power"])


def say_power(base: str, power: str) -> str:
    if power in ("2", "3"):
        return f"{base} {'squared' if power == '2' else 'cubed'}"
    minus = "minus " if power[0] in "-−" else ""
    power = power.lstrip("-−+")
    return f"{base} to the {minus}{say_number(power) if power.isdecimal() else power}"


def read_place(match: re.Match) -> str:
    """`room 101`, `apt. 4B`: a number that only names where."""
    word = match["word"]
    word = BEFORE_NUMBERS.get(word.rstrip(".").lower(), word)
    return f"{word} {say_pairs(match['number'])} {match['letter'].upper()}".rstrip()


def read_feet(match: re.Match) -> str:
    """`an 8' wall`, `10' x 12'`, unless the mark closes a quotation."""
    number, by = say_number(match["number"]), match["by"]
    if not by and match.string.count(match[0][-1], 0, match.start()) % 2:
        return f"{match['a'] or ''}{number}{match[0][-1]}"
    by = f" by {say_number(by)}" if by else ""
    return f"{match['a'] or ''}{number}{by} {'foot' if match['a'] or number == 'one' else 'feet'}"


def read_hashtag(match: re.Match) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", match["tag"])
    return "hashtag " + " ".join(say_number(w) if w.isdecimal() else w for w in words)


def read_code(match: re.Match) -> str:
    """`AB12CD34` -> `A B one two C D three four`."""
    return " ".join(DIGITS[int(c)] if c.isdecimal() else c.upper() for c in match[0])


def read_initials(match: re.Match) -> str:
    left, right = match["left"], match["right"]
    return f"{' '.join(left)} and {' '.join(right)}"


def read_abbreviation(match: re.Match) -> str:
    word = match["word"]
    ends = word[-1] == "." and match.end() == len(match.string)
    return ABBREVIATIONS[word] + ("." if ends else "")


def read_pair(match: re.Match) -> str:
    """Words with a slash between them."""
    words = match[0].split("/")
    if (known := WORDLY_PAIRS.get(match[0].lower())) is not None:
        return known
    if words[-1].lower() in PERIODS and (len(words[-1]) > 1 or len(words[0]) > 2):
        return f"{words[0]} per {PERIODS[words[-1].lower()]}"
    if match[0].isupper() or all(len(word) == 1 for word in words) or words[0].lower() in SIDES:
        return " ".join(words)
    return " or ".join(words)


def read_by(match: re.Match) -> str:
    """`2x2` -> `two by two`, `1920×1080` -> `nineteen twenty by ten eighty`, `7 × 8` -> times."""
    numbers = [match[name] for name in ("left", "right", "third") if match[name]]
    unit = f" {UNITS[match['unit']][1]}" if match["unit"] else ""
    rest = match.string[match.end() :]
    is_product = " × " in match[0] or rest.startswith((" =", "^"))  # 5×10^6
    if is_product and not unit:
        return " times ".join(say_number(number) for number in numbers)
    pairs = all(len(number) in (3, 4) and number.isdecimal() for number in numbers)
    return " by ".join(map(say_pairs if pairs else say_number, numbers)) + unit


COMPARISONS = {
    ">=": ("is at least", "at least"), "≥": ("is at least", "at least"),
    "=>": ("is at least", "at least"), "<=": ("is at most", "at most"),
    "≤": ("is at most", "at most"), ">": ("is greater than", "more than"),
    "<": ("is less than", "less than"), "!=": ("is not equal to", "not"),
    "≠": ("is not equal to", "not"), "==": ("equals", "equals"), "=": ("equals", "equals"),
    "≈": ("is about", "about"), "±": ("plus or minus", "plus or minus"),
    "×": ("times", "times"), "÷": ("divided by", "divided by"), "*": ("times", "times"),
    "+": ("plus", "plus"), "−": ("minus", "minus"), "-": ("minus", "minus"),
}  # fmt: skip
OPERATORS = one_of(sign for sign in COMPARISONS if sign not in "+-−*")


def read_operator(match: re.Match) -> str:
    return f" {COMPARISONS[match['op']][0]} "


def read_bound(match: re.Match) -> str:
    return f" {COMPARISONS[match['op']][1]} "


def _row(pattern: str, say: Callable[[re.Match], str], flags: int = 0) -> Reading:
    return re.compile(pattern, flags | re.ASCII), say


PAYER = "user|seat|person|member|license"
PER = (
    rf"(?P<per>(?:\s?/\s?(?:{PERIOD}|[A-Za-z]{{3,12}})(?![\w/]){DOT}"
    rf"|-(?:a|per)-(?:{PERIOD})\b|/(?:{PAYER})(?=/)|/(?:{PERIOD})(?=/(?:{PAYER})\b))*)"
)
MONEY = (
    rf"(?P<number>{NUMBER})(?:\s?(?P<size>(?i:{MAGNITUDE}))(?!\w|\s?/\s?\d))?"
    rf"(?:{DASH}(?:{CURRENCY})?(?P<upto>{NUMBER})(?:\s?(?P<size_upto>(?i:{MAGNITUDE}))\b)?)?"
)
UNIT = one_of(UNITS)
FREE_UNIT = one_of(unit for unit in UNITS if unit not in ATTACHED_ONLY)
HALF = rf"(?:[ap]\.?m|[AP]\.?M)\b{DOT}"
CLOCK = r"(?:[01]?\d|2[0-3])"

READINGS: tuple[Reading, ...] = (
    # addresses
    _row(
        r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}(?!\w)",
        lambda m: say_address(m[0]),
    ),
    _row(
        r"(?i:https?|ftp)://(?:www\.)?(?P<host>[^\s/?#:)\]>]+)(?::\d+)?"
        r"(?:[/?#][^\s)\]>]*?)?(?=[.,;!?]?(?:[\s)\]>]|$))",
        read_url,
    ),
    _row(
        rf"(?<![\w.@/-])(?:[\w-]+\.)+(?:{DOMAINS})(?::\d+)?(?:/[\w./~%-]*\w)?(?:\?\S*\w)?"
        r"(?![\w@])",
        read_domain,
    ),
    _row(r"(?<![\w.])(?P<ip>\d{1,3}(?:\.\d{1,3}){3})(?::(?P<port>\d{1,5}))?(?![\w]|\.\d)", read_ip),
    _row(r"(?<!\w)[A-Za-z]:\\[\w\\.-]+\w", lambda m: say_address(m[0])),
    _row(r"(?<![^\s([\"'“])(?:~|\.{1,2})?/(?:[\w.-]+/)*[\w.-]*\w", lambda m: say_address(m[0])),
    _row(rf"(?<![\w/.])(?:[\w.-]+/)+[\w.-]+\.(?:{FILES})(?!\w)", lambda m: say_address(m[0])),
    _row(rf"(?<![\w/.])[\w-]+(?:\.[\w-]+)*\.(?:{FILES})(?!\w)", lambda m: say_address(m[0])),
    _row(r"(?<![\w#&])#(?P<tag>[A-Za-z]\w*)", read_hashtag),
    _row(r"(?<![\w@.])@(?=[A-Za-z_])(?P<name>\w+)", lambda m: say_address(m[0])),
    _row(r"\blocalhost:(?P<port>\d{2,5})\b", lambda m: f"localhost port {say_number(m['port'])}"),
    # numbers that only name something
    _row(r"(?<![\w.,-])\d{4}(?:[ -]\d{4}){2,4}(?![\w-])", read_groups),
    _row(
        rf"\b(?P<word>{COUNTED})(?P<more>:? #?|:? (?:number|no\.|code|is) )(?P<digits>\d{{3,12}})"
        r"(?<!000)(?![\w/]|[.,]\d|-\d)",
        lambda m: f"{m['word']}{m['more'].replace('#', 'number ').replace('no.', 'number')}"
        f"{say_digits(m['digits'])}", re.IGNORECASE,
    ),
    _row(
        rf"\b(?P<word>{PLACED}) (?P<number>\d{{3,4}}|\d{{1,4}}(?=[A-Z]\b))(?P<letter>[A-Z]?)"
        r"(?![\w/]|[.,:]\d|-\d)",
        read_place, re.IGNORECASE,
    ),
    # names with signs
    _row(r"\bWWI\b", lambda _: "World War one"),
    _row(r"\bWWII\b", lambda _: "World War two"),
    _row(r"(?<!\w)(?P<letter>[A-Za-z])\+\+(?!\w)", lambda m: f"{m['letter']} plus plus"),
    _row(r"(?<!\w)(?P<letter>[CFJ])#(?!\w)", lambda m: f"{m['letter']} sharp"),
    _row(r"(?<![\w.])\.NET\b", lambda _: "dot net"),
    _row(r"(?<![\w&])(?P<left>[A-Z]{1,3})&(?P<right>[A-Z]{1,3})(?![\w&])", read_initials),
    _row(r"\bA(?P<road>\d{1,3})\(M\)", lambda m: f"A {say_number(m['road'])} M"),
    _row(
        r"(?<!\w)(?:No\.|no\.|#)\s?(?P<number>\d+)(?P<letter>[A-Z]?)\b",
        lambda m: f"number {say_number(m['number'])} {m['letter']}".rstrip(),
    ),
    # addresses in town
    _row(
        r"(?<![\w.,])(?P<number>\d{1,4})(?P<letter>[A-H])"
        r"(?= [A-Z][a-z]+ (?:St|Ave|Blvd|Rd|Ln|Dr)\b)",
        lambda m: f"{say_pairs(m['number'])} {m['letter']}",
    ),
    _row(
        r"(?<=\d )(?P<side>[NSEW])\.? (?=(?:\d+(?:st|nd|rd|th)|[A-Z][a-z]+) (?:St|Ave|Blvd|Rd)\b)",
        lambda m: f"{COMPASS[m['side']]} ",
    ),
    _row(
        rf"(?<=[a-z] )(?:(?P<kind>Ave|Blvd|Rd|Ln|Pkwy|Hwy|Sq)|(?P<end>St|Dr|Ct|Pl)"
        rf"(?=\.?(?:[,;)]|$| (?:{SIDE})\b)|\. (?:{NEXT_SENTENCE})\b))\b"
        rf"(?:\.(?=[,;)]| [a-z]| (?:{SIDE})\b))?(?: (?P<side>{SIDE})\b)?",
        lambda m: f"{STREETS[m['kind'] or m['end']]} {COMPASS.get(m['side'], '')}".rstrip(),
    ),
    _row(r"(?<=(?:st|nd|rd|th) )fl\b\.?(?=[ ,;)]|$)", lambda _: "floor"),
    _row(r"\bHTTP/(?=\d)", lambda _: "HTTP "),
    # dates and times
    _row(
        r"(?<![\w-])(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})(?:[T ]"
        r"(?P<hour>\d\d):(?P<minute>\d\d)"
        r"(?::(?P<second>\d\d)(?:\.\d+)?)?(?P<zone>Z|[+-]\d\d:?\d\d)?)?(?![\w-])",
        read_iso_date,
    ),
    _row(
        r"(?<![\w./])(?P<first>\d{1,2})(?P<mark>[/.])(?P<second>\d{1,2})(?P=mark)"
        r"(?P<year>\d{4}|(?<=/)\d\d)(?![\w/])",
        read_number_date,
    ),
    _row(
        rf"\b(?P<month>{MONTH})\b\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:{DASH}"
        rf"(?P<upto>\d{{1,2}})(?:st|nd|rd|th)?)?(?!\w|[:.,]\d)"
        rf"(?:,? (?P<year>\d{{4}})(?![\w:]))?(?! ?(?:%|{FREE_UNIT})\b)",
        read_month_day,
    ),
    _row(
        r"(?<![\w.,])(?:[Tt]he )?(?P<day>3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?(?: of)? "
        rf"(?P<month>{MONTH})\b{DOT}(?:,? (?P<year>\d{{4}})(?!\w))?",
        read_day_month,
    ),
    _row(
        rf"\b(?P<month>{MONTH})\b\.?(?=[ ,]+(?:1[1-9]|20)\d\d\b)",
        lambda m: MONTHS[find_month(m["month"]) - 1],
    ),
    _row(
        rf"\b(?P<first>{MONTH})\b\.?{DASH}(?P<last>{MONTH})\b{DOT}",
        lambda m: f"{MONTHS[find_month(m['first']) - 1]} to {MONTHS[find_month(m['last']) - 1]}",
    ),
    _row(
        rf"\b(?P<first>{DAY})\b\.?{DASH}(?P<last>{DAY})\b{DOT}",
        lambda m: f"{find_day(m['first'])} to {find_day(m['last'])}",
    ),
    _row(
        rf"\b(?P<day>{DAY})\b\.?(?=,? (?:{MONTH}|\d))",
        lambda m: find_day(m["day"]),
    ),
    _row(
        rf"\b(?:{DAY})\b\.?(?:(?:, and |, or |, | and | or | & |/)(?:{DAY})\b(?:\.(?=[ ,]))?)+",
        lambda m: re.sub(rf"\b({DAY})\b\.?", lambda day: find_day(day[1]), m[0]),
    ),
    _row(
        r"(?i:(?<=\bon )|(?<=\bby )|(?<=\bevery )|(?<=\buntil ))"
        rf"(?P<day>{DAY})\b(?:\.(?=[ ,]))?",
        lambda m: find_day(m["day"]),
    ),
    _row(
        r"(?i:(?<=\bon )|(?<=\bby )|(?<=\buntil )|(?<=\bsince )|(?<=\bdue ))(?!9/11)"
        r"(?P<month>1[0-2]|0?[1-9])/(?P<day>3[01]|[12]\d|0?[1-9])(?![\w/]| (?:of|an?)\b)",
        lambda m: read_date(None, int(m["month"]), int(m["day"])),
    ),
    _row(
        rf"(?<![\w:.])(?P<hour>{CLOCK}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?:\s?"
        rf"(?P<half>{HALF}))?"
        rf"(?:{DASH}(?P<hour2>{CLOCK}):(?P<minute2>[0-5]\d)(?:\s?(?P<half2>{HALF}))?)?(?![\w:])",
        read_time,
    ),
    _row(
        rf"(?<![\w:.])(?P<hour>{CLOCK})\.(?P<minute>[0-5]\d)(?P<second>)\s?(?P<half>{HALF})"
        r"(?P<hour2>)(?![\w:])",
        read_time,
    ),
    _row(
        rf"(?<![\w:.])(?P<hour>{CLOCK})(?P<minute>)(?P<second>)(?P<half>)"
        rf"{DASH}(?P<hour2>{CLOCK})(?::(?P<minute2>[0-5]\d))?\s?(?P<half2>{HALF})(?![\w:])",
        read_time,
    ),
    _row(
        rf"(?<![\w:.])(?P<hour>{CLOCK})(?P<minute>)(?P<second>)(?:\s?(?P<half>{HALF}))"
        rf"(?:{DASH}(?P<hour2>{CLOCK})(?::(?P<minute2>[0-5]\d))?(?:\s?(?P<half2>{HALF}))?)?"
        r"(?![\w:])",
        read_time,
    ),
    _row(
        rf"\b(?P<first>noon|midnight){DASH}(?=\d|noon\b|midnight\b)",
        lambda m: f"{m['first']} to ", re.IGNORECASE,
    ),
    _row(rf"(?<=\d|m|M){DASH}(?P<last>noon|midnight)\b", lambda m: f" to {m['last']}"),
    _row(
        r"\b(?P<zone>UTC|GMT)(?P<offset>[+−-]\d{1,2})\b",
        lambda m: f"{m['zone']} {read_offset(m['offset'])}",
    ),
    # telephones
    _row(r"(?<![\w.])\+\d{1,3}[ .-]?\(?\d{1,4}\)?(?:[ .-]?\d{2,4}){1,4}(?![\w])", read_phone),
    _row(r"(?<![\w.])(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}(?!\w)", read_phone),
    _row(r"(?<![\w.-])1-8\d\d-(?:[A-Z]{4,9}|\d{3}-\d{4})(?![\w-])", read_phone),
    _row(r"(?<![\w.-])(?:1[ .-])?\d{3}([-.])\d{3}\1\d{4}(?![\w-])", read_phone),
    _row(r"(?<![\w.-])\d{3} \d{3} \d{4}(?![\w-])", read_phone),
    _row(r"(?<![\w.-])\(?0\d{2,4}\)?[ -]\d{3,4}[ -]?\d{3,4}(?![\w-])", read_phone),
    _row(r"(?<![\w.-])\d{3}-\d{4}(?![\w-])", read_phone),
    _row(
        r"(?i:(?<=\bcall )|(?<=\bdial )|(?<=\btext ))\d{3,6}(?![\w.,]\d|\w)",
        lambda m: say_digits(m[0]),
    ),
    # money
    _row(
        rf"(?<![\w$])(?P<before>{CURRENCY})(?P<number>{NUMBER})/(?P<count>\d[\d,]*) (?=[a-z]{{3}})",
        lambda m: f"{say_number(m['number'])} {CURRENCIES[m['before']][m['number'] != '1']} per "
        f"{say_number(m['count'])} ",
    ),
    _row(
        rf"(?<![\w$])\$(?P<number>{NUMBER}) (?P<code>USD|CAD|AUD|NZD)\b",
        lambda m: f"{say_number(re.sub(r'[.]00$', '', m['number']))} {CURRENCIES[m['code']][1]}",
    ),
    _row(
        r"(?<![\w.,])(?P<number>\d{1,3}(?: \d{3})+) ?(?P<code>€|₽|zł|EUR|PLN)(?!\w)",
        lambda m: f"{say_number(m['number'])} {CURRENCIES[m['code']][1]}",
    ),
    _row(  # a dot in thousands, as these are written
        r"(?<![\w.])(?P<sign>[€₺₽])(?P<number>[1-9]\d{0,2}(?:\.\d{3})+)(?![\d.,]\d|\d)",
        lambda m: f"{say_number(m['number'].replace('.', ''))} {CURRENCIES[m['sign']][1]}",
    ),
    _row(
        r"(?<=[a-z]{3} )(?P<op>[<>]) ?(?=[$€£]\d)",
        lambda m: "over " if m["op"] == ">" else "under ",
    ),
    _row(rf"{SIGN}(?<![\w$])(?P<before>{CURRENCY})\s?{MONEY}(?P<after>){PER}(?!\d)", read_price),
    _row(rf"{START}{SIGN}(?P<before>){MONEY}\s?(?P<after>{CURRENCY}){PER}(?!\w)", read_price),
    _row(
        rf"{START}(?P<number>{NUMBER})\s?¢{PER}",
        lambda m: f"{say_count(m['number'], 'cent')}{read_periods(m['per'])}",
    ),
    _row(
        rf"(?<=\bper )(?P<per>{PERIOD})\b(?:\.(?=[ ,;)]))?",
        lambda m: PERIODS[m["per"]],
    ),
    # decades
    _row(r"(?<![\w.])['’]?(?P<head>1[1-9]|20)(?P<tail>\d0)'?s\b", read_decade),
    _row(r"(?<!\w)['’](?P<head>)(?P<tail>[2-9]0)s\b", read_decade),
    _row(
        r"(?i:(?<=\bthe )|(?<=\bearly )|(?<=\blate )|(?<=\bmid-)|(?<=\bher )|(?<=\bhis ))"
        r"(?P<head>)(?P<tail>[2-9]0)'?s\b",
        read_decade,
    ),
    # quantities
    _row(
        r"(?<![\w.])(?P<h>\d{1,3}) ?h ?(?P<m>[0-5]?\d)(?: ?(?:m|min))?\b",
        lambda m: f"{say_count(m['h'], 'hour')} {say_count(m['m'], 'minute')}",
    ),
    _row(
        r"(?<![\w.])(?P<ft>\d{1,3}) ?(?:ft|feet) ?(?P<in>\d{1,2}) ?in\b",
        lambda m: f"{say_number(m['ft'])} feet {say_count(m['in'], 'inch')}",
    ),
    _row(rf"(?<![\w.,'’′])(?P<a>[Aa] )?(?P<number>{NUMBER})[\"”″](?!\w)", read_inches),
    _row(
        rf"{START}(?P<number>{NUMBER})k?{DASH}(?P<upto>{NUMBER})(?P<size>[kK]|bn|mn)\b",
        lambda m: f"{say_number(m['number'])} to {say_number(m['upto'])} "
        f"{MAGNITUDES[m['size'].lower()]}",
    ),
    _row(
        r"(?<!\w)(?P<foot>\d)['’′](?P<inch>\d\d?)(?:[\"”″]|'')?(?!\w)",
        lambda m: f"{format_number(int(m['foot']))} foot {format_number(int(m['inch']))}",
    ),
    _row(
        r"(?<![\w.,'’′])(?P<a>[Aa]n? )?(?P<number>\d{1,3})['’′](?: ?[x×] ?(?P<by>\d{1,3})['’′])?"
        r"(?![\w'’′\"])",
        read_feet,
    ),
    _row(
        rf"{START}(?P<number>{NUMBER})-(?P<unit>{MEASURE})(?= [a-z])",
        lambda m: f"{say_number(m['number'])} {UNITS[m['unit']][0]}",
    ),
    _row(
        r"(?<![\w.,])(?P<a>[Aa]n? )?(?<![.,])(?P<whole>\d+)[ -]?"
        rf"(?:(?P<sign>[{''.join(FRACTIONS)}])|(?<=[ -])"
        rf"(?P<top>\d+)[/⁄](?P<bottom>\d+))(?:\s?(?P<unit>{FREE_UNIT})\b{DOT})?(?![\w/])",
        read_mixed,
    ),
    _row(
        r"(?<![\w.,/])(?P<top>\d)/(?P<bottom>[248]|16) ?"
        r"(?P<unit>in(?=[.,;)]|$)|mi|lb|oz|tsp|tbsp|gal)"
        r"\b\.?",
        lambda m: f"{say_fraction(int(m['top']), int(m['bottom']))} of "
        f"{article(UNITS[m['unit']][0])} {UNITS[m['unit']][0]}",
    ),
    _row(rf"[{''.join(FRACTIONS)}]", lambda m: say_fraction(*FRACTIONS[m[0]])),
    _row(rf"{START}{BY}\s?(?P<unit>{FREE_UNIT})\b(?![\w/]){DOT}", read_by),
    _row(
        rf"(?<![\w.,])(?P<a>[Aa]n? )?{SIGN}(?<![\d.,])(?P<number>{NUMBER})(?:"
        rf"(?:\s?(?:%|°[CF]?))?{DASH}(?P<upto>{NUMBER}))?"
        rf"(?:\s?(?P<unit>{FREE_UNIT})|(?P<close>{UNIT}))(?:/(?P<per>{UNIT}))?"
        rf"(?![\w^°]|/\w){DOT}",
        read_quantity,
    ),
    _row(rf"(?<![\w/])(?![A-Z]/[A-Z]\b)(?P<unit>{UNIT})/(?P<per>{UNIT})(?![\w/])", read_rate),
    _row(rf"{START}(?P<number>[248])K\b", lambda m: f"{say_number(m['number'])} K"),
    _row(
        rf"{START}{SIGN}(?P<number>{NUMBER})(?P<size>[kKMB]|bn|mn)\b(?!/)",
        lambda m: f"{sign_of(m)}{say_number(m['number'])} {MAGNITUDES[m['size'].lower()]}",
    ),
    _row(
        r"(?<!\w)(?P<number>\d{3,4})(?P<kind>[pi])\b",
        lambda m: f"{say_pairs(m['number'])} {m['kind']}",
    ),
    _row(
        rf"{START}{BY}(?P<unit>)(?!\w)(?<! )",
        read_by,
    ),
    _row(
        rf"{START}(?P<number>{NUMBER})(?:{DASH}(?P<upto>{NUMBER}))?[x×](?!\w){PER}",
        lambda m: f"{say_number(m['number'])}"
        f"{' to ' + say_number(m['upto']) if m['upto'] else ''} times{read_periods(m['per'])}",
    ),
    # ordinals, Roman numerals
    _row(
        r"(?<!\w)(?P<number>\d{1,3}(?:,\d{3})+|\d{1,9})(?:st|nd|rd|th)\b",
        lambda m: format_number(int(m["number"].replace(",", "")), to="ordinal"), re.IGNORECASE,
    ),
    _row(
        r"(?<=\d(?:st|nd|rd|th))\s?[-–—]\s?(?=\d{1,3}(?:st|nd|rd|th)\b)",
        lambda _: " to ", re.IGNORECASE,
    ),
    _row(rf"\b(?P<name>{NUMBERED}) (?P<roman>[IVXLCDM]+)\b(?!['’])", read_roman),
    _row(rf"\b(?P<name>{RULERS}) (?P<roman>[IVX]{{2,6}}|V|X)\b", read_roman),
    _row(rf"\b(?P<name>{RULERS}) (?P<roman>I)(?=[.,;:)]|$| of\b| was\b| ruled\b)", read_roman),
    _row(
        r"\b(?P<name>[A-Z][a-z]+) (?P<roman>"
        r"(?:I{2,3}|IV|VI{1,3}|IX|XI{0,3}|XI?V|XV|XVI{0,3}))\b(?<! X)",
        read_roman,
    ),
    _row(
        r"\b(?P<name>[A-Z]{1,4})(?P<digit>[1-9])s\b",
        lambda m: f"{m['name']} {say_many(m['digit'])}",
    ),
    _row(
        r"(?<![\w/.])(?=[A-Za-z./]*\d)\.?[A-Za-z]{2,}\d?(?:/\.?[A-Za-z]{2,}\d?){1,3}(?![\w/])",
        lambda m: read_many(m[0]),
    ),
    # numbers with signs
    _row(r"(?<![\w/.])24/7/365(?![\w/])", lambda _: "twenty four seven three sixty five"),
    _row(
        rf"\b(?P<name>{VERSIONED}) (?P<numbers>\d+(?:\.\d+)+)\b",
        lambda m: f"{m['name']} {' point '.join(map(say_number, m['numbers'].split('.')))}",
    ),
    _row(
        r"(?<![\w.])(?P<left>\d+\.\d+)/(?P<right>\d+)(?![\w/])",
        lambda m: f"{say_number(m['left'])} out of {say_number(m['right'])}",
    ),
    _row(
        r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])",
        lambda m: ", ".join(say_digits(part) for part in m[0].split("-")),
    ),
    _row(
        r"(?<![\w.])(?P<v>[vV]|[Vv]ersion )(?P<numbers>\d{1,6}(?:\.\d{1,6})*)(?P<more>-?"
        r"(?:alpha|beta|rc|dev)[.-]?\d*)?(?!\w)",
        read_version,
    ),
    _row(
        r"(?<![\w.])(?P<v>)(?P<numbers>\d{1,6}(?:\.\d{1,6}){2,})(?P<more>-?"
        r"(?:alpha|beta|rc|dev)[.-]?\d*)?(?!\w)",
        read_version,
    ),
    _row(
        rf"{START}(?P<top>\d{{1,4}})[/⁄](?P<bottom>\d{{1,4}})(?![\w/]|\.\d)",
        read_slashed_numbers,
    ),
    _row(
        r"(?<![\w:.])(?P<left>\d+(?:\.\d+)?):(?P<right>\d+(?:\.\d+)?)(?![\w:])",
        lambda m: f"{say_number(m['left'])} to {say_number(m['right'])}",
    ),
    _row(
        rf"{START}(?P<number>{NUMBER})[eE](?P<power>[-+−]?\d{{1,3}})\b",
        lambda m: f"{say_number(m['number'])} times {say_power('ten', m['power'])}",
    ),
    _row(
        r"(?<![\w.^])(?P<base>\d+(?:\.\d+)?|[A-Za-z]\w{0,20})\^[({]?"
        r"(?P<power>[-−+]?\d{1,3}|[a-z])[)}]?(?!\w)",
        read_power,
    ),
    _row(
        r"\bBoeing (?P<type>7\d7)(?:-(?P<kind>\d{1,3}))?\b",
        lambda m: f"Boeing {say_pairs(m['type'])} {say_pairs(m['kind']) if m['kind'] else ''}",
    ),
    _row(
        r"\b(?P<name>RTX|GTX|RX|Ryzen \d|Core i\d-?) ?(?P<number>\d{4})\b",
        lambda m: f"{m['name']} {say_pairs(m['number'])}",
    ),
    _row(
        r"(?<![\w-])(?P<letter>[A-Z]{1,3})-?(?P<number>[1-9]\d{2,3})(?![\w.-])",
        lambda m: f"{m['letter']} {say_pairs(m['number'])}",
    ),
    _row(
        r"(?<!\w)(?=[A-Z0-9]*\d[A-Z0-9]*[A-Z][A-Z0-9]*\d|[A-Z0-9]*[A-Z][A-Z0-9]*\d[A-Z0-9]*"
        r"[A-Z])[A-Z0-9]{6,40}(?!\w)",
        read_code,
    ),
    _row(r"(?<!\w)(?=[0-9a-f]*\d[a-f]+\d)[0-9a-f]{7,64}(?!\w)", read_code),
    _row(
        rf"{START}(?<![A-Za-z]-){SIGN}(?P<number>{NUMBER})[-–—](?P<upto>{NUMBER})(?![\w-]|[.,]\d)",
        read_range,
    ),
    _row(
        rf"{START}{SIGN}(?P<number>{NUMBER})\s[–—]\s(?P<upto>{NUMBER})(?![\w-]|[.,]\d)",
        read_range,
    ),
    _row(r"(?<=\d) / (?=\d+(?:\.\d+)? =)", lambda _: " divided by "),
    _row(r"(?<=[\w)]) (?P<op>[-−+*]) (?=[\w(.]*\d|[a-z]\b)(?<=\d . |\w . |\) . )", read_operator),
    _row(rf"(?<=[\w)]) ?(?P<op>{OPERATORS}) ?(?=[\w(.$€£-])", read_operator),
    _row(r"(?<=\d)(?P<op>[+*])(?=\d)", read_operator),
    _row(r"(?P<op>>=|≥|<=|≤|>|<|≈|±) ?(?=[$€£.\d])", read_bound),
    _row(
        r"(?i:(?<=\babout )|(?<=\baround )|(?<=\broughly ))~ ?(?=[$€£.\d])",
        lambda _: "",
    ),
    _row(r"(?<!\w)~ ?(?=[$€£.\d])", lambda _: "about "),
    _row(r"√ ?(?=[\w(])", lambda _: "square root of "),
    _row(r"(?<=\d)\+(?![\w+])", lambda _: " plus"),
    _row(r"→|⇒|->|=>|<-|←|↔", lambda _: " "),
    _row(r"(?<![\w.,])(?:1[1-9]\d\d|20\d\d)(?![\w]|[.,]\d)", lambda m: say_year(m[0])),
    _row(
        rf"(?<![\w)])[-−–](?P<number>{NUMBER})(?!\w)",
        lambda m: f"minus {say_number(m['number'])}",
    ),
    _row(rf"(?<![\w)])\+(?P<number>{NUMBER})(?!\w)", lambda m: f"plus {say_number(m['number'])}"),
    _row(rf"(?<![\d.,])(?P<number>{NUMBER})", lambda m: say_number(m["number"])),
    # abbreviations
    _row(
        rf"\b(?P<title>{one_of(TITLES)})\. (?=[A-Z]|and [A-Z])",
        lambda m: f"{TITLES[m['title']]} ",
    ),
    _row(r"(?<=[a-z] )St\.(?= [a-z]|$|,)", lambda _: "Street"),
    _row(
        rf"(?<![\w.])(?P<word>{one_of(BEFORE_NUMBERS)})\.\s?(?=\d)",
        lambda m: f"{BEFORE_NUMBERS[m['word'].lower()]} ", re.IGNORECASE,
    ),
    _row(
        rf"(?<![\w./])(?P<word>{one_of(ABBREVIATIONS)})(?![\w])",
        read_abbreviation,
    ),
    _row(
        rf"(?<![\w.])(?P<word>{one_of(ENDINGS)})(?!\w)(?P<end>$|(?= [A-Z]))?",
        lambda m: f"{ENDINGS[m['word']]}{'.' if m['end'] is not None else ''}",
    ),
    _row(
        r"(?<![\w.])(?:[A-Z]\.){2,6}(?!\w)",
        lambda m: " ".join(m[0].replace(".", "")) + ("." if m.end() == len(m.string) else ""),
    ),
    # words with signs between them
    _row(r"(?<![\w/])[A-Za-z]+(?:/[A-Za-z]+){1,3}(?![\w/])", read_pair),
)  # fmt: skip

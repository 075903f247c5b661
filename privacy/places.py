"""Detectors of postal addresses by their form; a model finds more (token_labels.py).

Streets of English-speaking countries (USPS Publication 28), Germany and China.
"""

import re

from privacy.detectors import Detector, Found, bounds

_STREET_WORDS = """
    Alley Ally Annex Anex Arcade Avenue Ave Bayou Beach Bend Bluff Bluffs Bottom Boulevard Blvd
    Branch Bridge Brook Brooks Burg Burgs Bypass Camp Canyon Cape Causeway Center Centers Circle
    Circles Cliff Cliffs Close Club Common Commons Corner Corners Course Court Courts Cove Coves
    Creek Crescent Crest Crossing Crossroad Curve Dale Dam Divide Drive Drives Estate Estates
    Expressway Extension Extensions Fall Falls Ferry Field Fields Flat Flats Ford Fords Forest Forge
    Forges Fork Forks Fort Freeway Garden Gardens Gateway Glen Glens Green Greens Grove Groves
    Harbor Harbors Haven Heights Highway Hwy Hill Hills Hollow Inlet Island Islands Isle Junction
    Junctions Key Keys Knoll Knolls Lake Lakes Land Landing Lane Ln Light Lights Loaf Lock Locks
    Lodge Loop Mall Manor Manors Meadow Meadows Mews Mill Mills Mission Motorway Mount Mountain
    Mountains Neck Orchard Oval Overpass Park Parks Parkway Pkwy Parkways Pass Passage Path Pike
    Pine Pines Place Plain Plains Plaza Point Points Port Ports Prairie Radial Ramp Ranch Rapid
    Rapids Rest Ridge Ridges Rise River Road Rd Roads Route Row Rue Run Shoal Shoals Shore Shores
    Skyway Spring Springs Spur Spurs Square Sq Squares Station Stravenue Stream Street St Streets
    Summit Terrace Throughway Trace Track Trafficway Trail Trailer Tunnel Turnpike Underpass Union
    Unions Valley Valleys Via Viaduct View Views Village Villages Ville Vista Walk Walks Wall Way
    Ways Well Wells Dr Ct Cir Ter
"""
STREETS = tuple(_STREET_WORDS.split())
_STREET = "|".join(sorted(STREETS, key=lambda word: (-len(word), word)))
GAP = r"(?:,?[ ]|,?\n|,?\\n)"
UNIT = r"(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Room|Rm|#)\.?[ ]?\w{1,6}"
TOWN = r"[A-Z][A-Za-z'’-]+(?:[ ][A-Z][A-Za-z'’-]+){0,3}"
STATE_ZIP = r"(?:[A-Z]{2}|[A-Z][a-z]+(?:[ ][A-Z][a-z]+)?)[ ]\d{5}(?:-\d{4})?"
POSTCODE = r"[A-Z]{1,2}\d[A-Z\d]?[ ]?\d[A-Z]{2}"
EDGE = r"(?:(?<![\w.,$€£-])(?<!\d[ ])|(?<=(?<!\\)\\[nrt]))"
STREET = re.compile(
    EDGE + rf"(?:{UNIT}{GAP})?\d{{1,6}}[A-Za-z]?(?:[-/]\d{{1,5}})?[ ]"
    r"(?:(?:[NSEW]{1,2}\.?|North|South|East|West)[ ])?"
    rf"(?:(?:[A-Z][\w'’.-]*|\d{{1,3}}(?:st|nd|rd|th))[ ]){{1,4}}?(?:{_STREET})\b\.?"
    rf"(?:{GAP}{UNIT})?(?:{GAP}{TOWN}(?={GAP}(?:[A-Z]{{2}}[ ]?\d|{POSTCODE}|{STATE_ZIP}))"
    rf"(?:{GAP}(?:{STATE_ZIP}|{POSTCODE})))?(?:{GAP}{POSTCODE}|{GAP}{STATE_ZIP})?(?!\w)"
)
FLAT_STREET = re.compile(
    EDGE + rf"(?:Flat|Studio|Apartment|Unit)[ ]\d{{1,4}}[A-Za-z]?{GAP}(?:[A-Z][\w'’-]*[ ]){{1,3}}"
    rf"(?:{_STREET})\b(?:{GAP}{TOWN})?(?:{GAP}{POSTCODE})?(?!\w)"
)
MILITARY = re.compile(
    EDGE + r"(?:(?:Unit|PSC|CMR)[ ]\d{1,5},?[ ]Box[ ]\d{1,5}|US[A-Z]{1,3}[ ][A-Z][a-z]+)"
    rf"{GAP}(?:APO|FPO|DPO),?[ ]A[AEP][ ]\d{{5}}(?!\w)"
)
POST_BOX = re.compile(
    EDGE + r"(?:P\.?[ ]?O\.?[ ]?Box|Postfach)[ ]\d{1,3}(?:[ ]?\d{2,3}){0,2}"
    rf"(?:{GAP}{TOWN},?[ ]{STATE_ZIP}|{GAP}\d{{5}}[ ][A-ZÄÖÜ][a-zäöüß]+)?(?!\w)",
)
CITY_ZIP = re.compile(EDGE + rf"{TOWN},[ ][A-Z]{{2}}[ ]\d{{5}}(?:-\d{{4}})?(?!\w)")
POSTCODE_GB = re.compile(
    EDGE + r"(?:[A-PR-UWYZ][A-HK-Y]?\d[A-Z\d]?|GIR)[ ]\d[ABD-HJLNP-UW-Z]{2}(?!\w)"
)
GERMAN_WORD = r"[A-ZÄÖÜ][A-Za-zäöüßéèÄÖÜ.'’-]*"
GERMAN_TOWN = (
    rf"{GERMAN_WORD}(?:[ ](?:am|an der|im|in|bei)[ ]{GERMAN_WORD}|[ ]{GERMAN_WORD}){{0,2}}"
)
GERMAN_STREET = (
    r"(?:straße|strasse|str\.|weg|platz|allee|gasse|ring|damm|ufer|hof|chaussee|steig|stieg|pfad|"
    r"markt|graben|berg|winkel|brücke|kamp|twiete|zeile)"
)
STREET_DE = re.compile(
    r"(?:(?<![\w.-])|(?<=(?<!\\)\\[nrt]))(?:(?:Am|An der|An den|Auf dem|Auf der|Im|In der|"
    r"Zum|Zur|Unter den)"
    rf"[ ]{GERMAN_WORD}|(?:{GERMAN_WORD}[ ]){{0,2}}?[A-ZÄÖÜ][A-Za-zäöüßéèÄÖÜ.'’-]*?{GERMAN_STREET}|"
    rf"(?:{GERMAN_WORD}[ -]){{1,3}}(?i:{GERMAN_STREET}))[ ]\d{{1,4}}[ ]?[a-h]?(?:[ ]?[-/+][ "
    rf"]?\d{{1,4}}[a-h]?)?"
    rf"(?:{GAP}(?:D-)?\d{{5}}[ ]{GERMAN_TOWN})?(?!\w)"
)
TOWN_DE = re.compile(
    r"(?:(?<![\w.,-])|(?<=(?<!\\)\\[nrt]))(?P<street>(?:[A-ZÄÖÜ][\w.'’-]*[ ](?:(?:am|an|der|"
    r"den|dem|auf|in|im|zum|zur|von|vom)[ ]){0,2}){1,4}\d{1,4}(?:[ ]?[-/][ ]?\d{1,4})?[a-h]?)"
    rf"{GAP}(?:D-)?\d{{5}}[ ]{GERMAN_TOWN}(?!\w)"
)
HAN = r"[\u4e00-\u9fff]"
PART = r"(?:号|座|栋|幢|楼|室|单元|层|弄|村|院|组|期|巷)"
REGION = rf"(?:{HAN}{{2,8}}?(?:省|自治区|特别行政区|市|县|区|旗|州|镇|乡))"
ADDRESS_CN = re.compile(
    rf"(?P<value>(?:{REGION}{{1,4}}{HAN}{{1,12}}?(?:路|街|道|巷|弄|胡同|里|小区|花园|大厦|广场)"
    rf"|{REGION}{{2,4}}){HAN}{{0,8}}?"
    rf"(?:[0-9A-Za-z一二三四五六七八九十-]{{1,6}}{PART}){{1,5}}[ ]?\d{{0,6}})"
)
STREET_CN = re.compile(
    rf"(?P<value>{HAN}{{2,6}}(?:路|街|大道|巷|胡同)\d{{1,5}}(?:号|弄)"
    rf"(?:{HAN}{{0,6}}?[0-9A-Za-z-]{{1,6}}{PART}){{0,4}})"
)
LEADING_CN = re.compile(
    r"^.*?(?:家住|住在|住址|地址|寄到|送到|发到|发往|寄往|位于|来自|居住于|住|寄|送|到|在|"
    r"是|为|于|去|我)+"
)
ADDRESS_SCORE = 0.7


def check_address(match: "re.Match[str]") -> Found:
    """Accept by form."""
    return (*bounds(match), ADDRESS_SCORE)


def check_chinese(match: "re.Match[str]") -> Found | None:
    """Accept from behind the words that lead to an address."""
    start, end = bounds(match)
    lead = LEADING_CN.match(match["value"][:8])
    start += lead.end() if lead else 0
    return (start, end, ADDRESS_SCORE) if end - start >= 5 else None


DETECTORS = (
    Detector(
        "LOCATION",
        tuple(rf"(?-i: {word}\b)" for word in STREETS),
        STREET,
        check_address,
        80,
        100,
        re.compile("[0-9]"),
    ),
    Detector(
        "LOCATION", (r"\b(flat|studio|apartment|unit) \d",), FLAT_STREET, check_address, 24, 120
    ),
    Detector("LOCATION", (r"\b[afd]po,? a[aep] \d{5}",), MILITARY, check_address, 60, 8),
    Detector("LOCATION", (r"p\.? ?o\.? ?box \d", r"postfach \d"), POST_BOX, check_address, 16, 80),
    Detector("LOCATION", (r"(?-i:[a-z], [A-Z]{2} \d{5})",), CITY_ZIP, check_address, 60, 8),
    Detector(
        "LOCATION", (r"(?-i:[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2})",), POSTCODE_GB, check_address, 16, 4
    ),
    Detector(
        "LOCATION",
        (
            r"(stra(ß|ss)e|str\.|weg|platz|allee|gasse|ring|damm|ufer|hof|chaussee|"
            r"steig|stieg|pfad|markt|graben|berg|winkel|br.cke|kamp|twiete|zeile) \d",
            r"(?-i:\b(Am|An de[rn]|Auf de[mr]|Im|In der|Zum|Zur|Unter den) [A-Z\?][^\s]+ \d)",
        ),
        STREET_DE,
        check_address,
        80,
        60,
    ),
    Detector(
        "LOCATION",
        (r"(?-i:\d[a-h]?(,? |,?\n|,?\\n)(D-)?\d{5} [A-Z\?äöü])",),
        TOWN_DE,
        check_address,
        56,
        48,
    ),
    Detector(
        "LOCATION", (rf"[a-z0-9一二三四五六七八九十]{PART}",), ADDRESS_CN, check_chinese, 60, 40
    ),
    Detector("LOCATION", (r"[路街道巷同]\d{1,5}[号弄]",), STREET_CN, check_chinese, 16, 40),
)

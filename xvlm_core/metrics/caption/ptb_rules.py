"""What a token of the Penn Treebank looks like, rule by rule.

The reference is a scanner: at each place the rule that reaches farthest wins, and of several that
reach equally far the first one. What a rule demands after the token counts for how far it reaches,
but is left for the next token. The rules were found by asking the reference (the Java tokeniser
that pycocoevalcap runs) about strings made for the purpose; the tests ask it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xvlm_core.metrics.caption.ptb_letters import ALPHABETIC, DIGITS, MARKS, SIGNS


@dataclass(frozen=True)
class Rule:
    """One kind of token.

    Attributes:
        token: regular expression of the token; its greediest match must be its longest.
        after: of what must follow it.
        written: what is written instead of the token; None: itself, in the spelling ``tidy``.
        tidy: what is written instead of some of its characters.
    """

    token: str
    after: str = ""
    written: str | None = None
    tidy: Mapping[str, str] = field(default_factory=dict)


def _any(words: str) -> str:
    """One of the words, the longest first: of two that fit, the longer is meant."""
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_SPELLED = r"&[aeiouAEIOU](?:acute|grave|uml);"
_ALPHA = f"[{ALPHABETIC}]"
_DIGIT = f"[{DIGITS}]"
_ALNUM = f"[{ALPHABETIC}{DIGITS}]"
_LETTER = f"(?:[{ALPHABETIC}{MARKS}]|{_SPELLED})"
_LETTER_OR_DIGIT = f"(?:[{ALPHABETIC}{MARKS}{DIGITS}]|{_SPELLED})"
_BLANK = r"[ \t\u00A0\u2000-\u200A\u3000]"
_GAP = r"[ \t\u00A0\u2000-\u200A\u3000\n\r\u2028\u2029\u000B\u000C\u0085]"
_APOSTROPHE = r"(?:['\u0092\u2019]|&apos;)"
_QUOTE = r"(?:['\u0092\u2019`\u0091\u2018\u201B]|&apos;)"
_HYPHEN = r"[-_\u058A\u2010\u2011]"
_AND = r"(?:&amp;|&)"

_RUN = f"{_LETTER}{_LETTER_OR_DIGIT}*"
_WORD = rf"{_RUN}(?:[.!?]{_RUN})*"
_PART = f"(?:[dDoOlL]{_QUOTE}{_ALNUM})?{_ALNUM}+"
_THING = f"{_PART}(?:{_HYPHEN}{_PART})*"
_CLITIC = f"{_APOSTROPHE}(?ai:[msd]|re|ve|ll)"
_NOT = f"(?ai:n{_QUOTE}t)"
_PLAIN_NUMBER = rf"(?:{_DIGIT}*(?:[.,:\u00AD\u066B\u066C]{_DIGIT}+)+|{_DIGIT}+)"
_SOME = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = (
    r"(?ai:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-(?:u\.k|u\.s\.s\.r)|[a-z](?:\.[a-z])+)"
)
_FILE_ENDING = _any(
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php"
    " pl png ppt ps py sql tar txt wav x xml zip"
)

# What an abbreviation's dot belongs to. The first may also end a sentence: they demand two further
# characters, which lets them win over what is not longer than that ("co.x" is two tokens).
_ENDING = "(?ai:{})|{}".format(
    _any(
        "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec"
        " esq est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich"
        " minn mo mon mont neb nev nov oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu"
        r" thurs tue tues univ va vt wed wis wisc wyo (?:ed|ph)\.d"
    ),
    "(?:A(?ai:rk|z)|D(?ai:el)|I(?ai:ll)|L(?ai:a)|M(?ai:ass|iss)|O(?ai:re)|P(?ai:a)|T(?ai:ex)"
    "|W(?ai:ash)"
    "|[pP]p?t[ye](?ai:s)|[pP]p?t[ye])",
)
_TITLE = "(?:(?ai:{})|{})".format(
    _any(
        "adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr"
        " drs elec ens ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms"
        " msgr mt natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt"
        " supts treas vs wm"
    ),
    "[mM][ft](?ai:g)",
)
_NUMBERED = "(?ai:{})".format(_any("art ca fig figs no nos op pp prop"))

_ELIDED = (
    rf"(?ai:{_APOSTROPHE}n{_APOSTROPHE}?|{_APOSTROPHE}(?:em|till?|cause)"
    rf"|(?:[ldj]|dunkin|somethin|ol){_APOSTROPHE}"
    rf"|cont{_APOSTROPHE}d\.|nor{_APOSTROPHE}easter|c{_APOSTROPHE}(?:mon|est)"
    rf"|s{_APOSTROPHE}mores|[en]{_APOSTROPHE}er|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l"
    rf"|nat{_APOSTROPHE}l|cap{_APOSTROPHE}n|o{_QUOTE}o)"
)
_COMPOUND = r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:(?ai:[a-z](?:\.[a-z])+)\.|[A-Za-z0-9\u00AD]+))+"
_FIXED = rf"-(?ai:RRB|LRB|RCB|LCB|RSB|LSB)-|(?ai:C\.D\.s|pro-|anti-|S{_AND}P-500|S{_AND}Ls)"
_FILE = rf"{_LETTER_OR_DIGIT}+(?:\.{_LETTER_OR_DIGIT}+)*\.(?ai:{_FILE_ENDING})"
_FRACTION = rf"(?:{_DIGIT}{{1,4}}[- \u00A0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}"
_URL_REST = r"""[^ \t\n\f\r"<>|(){}]+[^ \u00A0\t\n\f\r"<>|.!?(){},-]"""
_AT = r"""[^ \t\n\f\r"<>|().\u00A0{}]+"""
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = rf"""[ ]+{_NAME}(?:[ ]*=[ ]*(?:'[^'\r\n]*'|"[^"\r\n]*"))?"""
_TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_NAME}(?:{_ATTRIBUTE})*[ ]*/?|/{_NAME})[ ]*>"
_STARTER = _any(
    "A A(?ai:bout|ccording|dditionally|fter|n|s|t) B(?ai:ut) E(?ai:arlier) H(?ai:e|er|ere|owever)"
    " I(?ai:f|n|t) L(?ai:ast) M(?ai:any|ore|r\\.|s\\.) N(?ai:ow) O(?ai:nce|ne|ther|ur)"
    " S(?ai:he|ince|o|ome|uch) T(?ai:hat|he|heir|hen|here|hese|hey|his) W(?ai:e|hat|hen|hile)"
    " Y(?ai:et|ou)"
)
_SIGN = rf"[-\"#$%&+,./:;<=>?@\\^_`|~'!*{SIGNS}]"
_PHONE_TAIL = r"[0-9]{3,4}[- \u00A0]?[0-9]{3,5}"
_FACE = r"[-^x=~<>']"

_NO_SOFT_HYPHEN = {"\u00ad": ""}
_ONE_PIECE = {" ": "\u00a0", "\t": "\u00a0", "(": "-LRB-", ")": "-RRB-"}
_PLAIN_AND = {"&amp;": "&"}
_PLAIN_QUOTES = {
    **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
    **dict.fromkeys(("&apos;", "\u0092", "\u2019", "\u203a"), "'"),
    **dict.fromkeys("\u0093\u201c\u00ab", "``"),
    **dict.fromkeys("\u0094\u201d\u00bb", "''"),
}
_BRACKETS = {"[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-", "(": "-LRB-", ")": "-RRB-"}
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}

RULES: tuple[Rule, ...] = (
    # words that are two
    Rule("(?ai:can)", "(?ai:not)"),
    Rule("(?ai:gon|wan)", "(?ai:na)"),
    Rule("(?ai:got)", "(?ai:ta)"),
    Rule("(?ai:lem|gim)", "(?ai:me)"),
    Rule("'(?ai:t)", "(?ai:is|was)"),
    # markup and entities
    Rule(_TAG, tidy={" ": "\u00a0"}),
    Rule(r"&(?ai:MD|mdash|ndash);|[\u0096\u0097\u2013-\u2015]", written="--"),
    Rule("&amp;", written="&"),
    Rule("&(?ai:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);"),
    # words, with what is written together with them
    Rule(_WORD, _CLITIC, tidy=_NO_SOFT_HYPHEN),
    Rule("[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _NOT, tidy=_NO_SOFT_HYPHEN),
    Rule(_WORD, tidy=_NO_SOFT_HYPHEN),
    Rule(_ELIDED),
    Rule(f"[A-HJ-XZn]{_QUOTE}{_ALPHA}{{2,}}"),
    Rule(f"{_APOSTROPHE}[2-9]0[sS]"),
    Rule(f"{_ALPHA}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_ALPHA}*"),
    Rule(f"(?ai:y){_APOSTROPHE}", _ALPHA),
    # addresses
    Rule(rf"https?://{_URL_REST}"),
    *(
        Rule(f"{host}{rest}")
        for host in (
            r"""www\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}""",
            r"""(?:[^ \t\n\f\r"`'<>|.!?(){},-_$]+\.)+(?ai:com|net|org|edu)""",
        )
        for rest in ("", f"/{_URL_REST}")
    ),
    Rule(rf"(?:&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00A0{{}}]*@(?:{_AT}\.)*{_AT}(?:&gt;|>)?"),
    Rule("@[a-zA-Z_][a-zA-Z_0-9]*"),
    Rule(f"#{_LETTER}+"),
    Rule(_CLITIC, "[^A-Za-z]", tidy=_PLAIN_QUOTES),
    Rule(_NOT, tidy=_PLAIN_QUOTES),
    # numbers
    Rule(rf"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"),
    Rule(f"[-+]?{_PLAIN_NUMBER}", tidy=_NO_SOFT_HYPHEN),
    Rule(
        "[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)"
    ),
    Rule(_FRACTION, tidy=_ONE_PIECE),
    # words with signs in them
    Rule(_FIXED, tidy=_PLAIN_AND),
    Rule(f"{_APOSTROPHE}[0-9][0-9]", _GAP),
    Rule(_THING, tidy=_NO_SOFT_HYPHEN),
    Rule(f"[A-Z]+(?:(?:[+]|{_AND})[A-Z]+)+", tidy=_PLAIN_AND),
    Rule(rf"{_SOME}(?:\\?/{_SOME}){{1,2}}"),
    Rule("&(?ai:lt);", written="<"),
    Rule("&(?ai:gt);", written=">"),
    Rule("&(?ai:quot);", written="''"),
    Rule("&(?ai:nbsp);", written=""),
    Rule(f"(?:{_ENDING})\\.", "[\\s\\S]{2}"),
    Rule(f"(?:{_ENDING})\\."),
    Rule(f"{_TITLE}\\."),
    Rule(f"{_NUMBERED}\\.", f"{_BLANK}?{_DIGIT}"),
    Rule(rf"{_INITIALS}\."),
    Rule("[A-Za-z]", rf"\.{_GAP}+(?:{_STARTER}|{_TAG}){_GAP}"),
    Rule(r"[A-Za-z]\."),
    Rule(rf"{_WORD}\.", r"[,;:\u3001]", tidy=_NO_SOFT_HYPHEN),
    Rule(rf"{_THING}\.", r"[,;:\u3001]", tidy=_NO_SOFT_HYPHEN),
    Rule(_COMPOUND, tidy=_NO_SOFT_HYPHEN),
    Rule(_FILE, rf"(?:{_GAP}|[.?!,])"),
    Rule(r"(?ai:[cf]#|c\+\+)"),
    Rule(rf"\([0-9]{{2,3}}\)[ \u00A0]?{_PHONE_TAIL}", tidy=_ONE_PIECE),
    Rule(rf"(?:\+\+?)?[0-9]{{2,4}}[- \u00A0][0-9]{{2,4}}[- \u00A0]{_PHONE_TAIL}", tidy=_ONE_PIECE),
    Rule(rf"(?:\+\+?)?[0-9]{{2,4}}[- \u00A0]{_PHONE_TAIL}", tidy=_ONE_PIECE),
    Rule(r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # signs
    Rule(f"{_BLANK}+", written=""),
    Rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", tidy=_ONE_PIECE),
    Rule(rf"{_FACE}_{_FACE}|\({_FACE}[_.]?{_FACE}\)", tidy=_ONE_PIECE),
    Rule("[A-Z]*\\$"),
    Rule("'", r"[A-Za-z][^ \t\n\r\u00A0]"),
    Rule(_CLITIC, tidy=_PLAIN_QUOTES),
    Rule("&apos;", written="'"),
    Rule("``?|''?"),
    Rule('"', written="''"),
    Rule("[`\u0091-\u0094\u2018-\u201f\u2039\u203a\u00ab\u00bb]{1,2}", tidy=_PLAIN_QUOTES),
    Rule(r"\.{3,5}|(?:\.[ \u00A0]){2,4}\.|[\u0085\u2026]", written="..."),
    Rule("[?!]+"),
    Rule("-{3,4}", written="--"),
    Rule("-+|_+|#+|@+|<<|>>"),
    Rule(r"\*+|(?:\\\*){1,3}"),
    Rule("\u00a2", written="cents"),
    Rule("\u00a3", written="#"),
    Rule("[\u0080\u00a4\u20a0\u20ac]", written="$"),
    *(Rule(sign, written=fraction) for sign, fraction in _FRACTIONS.items()),
    *(Rule(f"\\{sign}", written=bracket) for sign, bracket in _BRACKETS.items()),
    Rule("\u00ad", written="-"),
    Rule(_SIGN),
)

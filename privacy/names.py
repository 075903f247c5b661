"""Detectors of people's names by dictionary and context; a model finds more (token_labels.py).

English, German and Chinese. A given name alone is no finding: it is a word like others.
"""

import re

from privacy.detectors import Detector, Found, after, bounds

_GIVEN_NAMES = """
    James John Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel
    Matthew Anthony Donald Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald
    Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott
    Brandon Benjamin Samuel Gregory Frank Alexander Raymond Patrick Jack Dennis Jerry Tyler Aaron
    Jose Adam Henry Nathan Douglas Zachary Peter Kyle Walter Ethan Jeremy Harold Keith Christian
    Roger Noah Gerald Carl Terry Sean Austin Arthur Lawrence Jesse Dylan Bryan Joe Jordan Billy
    Bruce Albert Willie Gabriel Logan Alan Juan Wayne Roy Ralph Randy Eugene Vincent Russell Louis
    Philip Bobby Johnny Bradley Oliver Harry Charlie Oscar Leo Alfie Stuart Graham Nigel Simon
    Colin Duncan Hugh Rhys Gareth Callum Lewis Craig Darren Neil Martin Trevor Barry Geoffrey
    Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty
    Margaret Sandra Ashley Kimberly Emily Donna Michelle Carol Amanda Dorothy Melissa Deborah
    Stephanie Rebecca Sharon Laura Cynthia Kathleen Amy Angela Shirley Anna Brenda Pamela Emma
    Nicole Helen Samantha Katherine Christine Debra Rachel Carolyn Janet Catherine Maria Heather
    Diane Ruth Julie Olivia Joyce Virginia Victoria Kelly Lauren Christina Joan Evelyn Judith
    Megan Andrea Cheryl Hannah Jacqueline Martha Gloria Teresa Ann Sara Madison Frances Kathryn
    Janice Jean Abigail Alice Julia Judy Sophia Grace Denise Amber Doris Marilyn Danielle Beverly
    Isabella Theresa Diana Natalie Brittany Charlotte Marie Kayla Alexis Lori Lindsey Kirsty
    Joanna Gemma Fiona Claire Zoe Chloe Lucy Jane Gillian Lynne Tracey Hayley Leanne Georgina
    Hans Peter Wolfgang Klaus Jürgen Dieter Manfred Uwe Günter Günther Horst Bernd Werner Helmut
    Gerhard Heinz Heinrich Herbert Karl Josef Walter Rolf Dirk Ralf Stefan Andreas Matthias
    Markus Sebastian Tobias Florian Lukas Jonas Felix Maximilian Moritz Niklas Jan Lars Sven Jens
    Holger Torsten Thorsten Volker Detlef Reinhard Siegfried Friedrich Ludwig Otto Ernst Kurt
    Ursula Renate Monika Helga Karin Ingrid Brigitte Gisela Petra Sabine Susanne Gabriele Heike
    Birgit Martina Claudia Silke Anja Katrin Kathrin Stefanie Melanie Nadine Katharina Christiane
    Angelika Elke Erika Gerda Hildegard Irmgard Elfriede Hannelore Jutta Silvia Ulrike Cornelia
    Lena Leonie Sophie Johanna Franziska Greta Frieda Mia Lina Marlene Justine Julian
    Mohammed Muhammad Ahmed Ali Fatima Aisha Omar Priya Raj Amit Sanjay Carlos Luis Miguel Pedro
    Antonio Francisco Sofia Lucia Elena Ivan Dmitri Olga Natasha Sergei Giovanni Marco Giulia
    Pierre Jacques François Camille Hiroshi Yuki Kenji Wei Ming Li Jing
"""
GIVEN_NAMES = frozenset(_GIVEN_NAMES.split())
"""Common given names (birth registers of the United States, the United Kingdom and Germany)."""
SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶"
    "程苏魏吕丁任沈"
    "姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严"
    "覃武戴莫孔向汤温"
    "康施文牛樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅"
    "童凌毕单季裴霍"
    "涂成苗谷盛曲翁冉骆蓝路游辛靳欧阳管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车"
    "项连芦麦褚娄窦戚"
    "岑景党宫费卜冷晏席卫米柏宗瞿桂全佟应臧闵苟邬边卞姬师和仇栾隋商刁沙荣巫寇桑郎甄丛仲虞敖"
    "巩明佘池查麻苑迟邝鞠晋冼乐连苍海帅代揭沃卓屠富辜应侍楼奚强隆玉赖洪湛裘胥"
)
DOUBLE_SURNAMES = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|司徒|令狐|端木|夏侯|长孙|南宫"
PARTICLE = r"(?:(?:von|van|de|der|den|zu|zum|vom|bin|al|la|le|di|da|dos)[ ]){0,2}"
WORD = (
    r"(?:(?:O|D|L)['’])?(?:Mc|Mac)?[A-ZÀ-ÖØ-ÞŁŠŽ][a-zà-öø-ÿłšžß]+"
    r"(?:[-'’][A-ZÀ-ÖØ-ÞŁŠŽ]?[a-zà-öø-ÿłšžß]+)*"
)
INITIAL = r"[A-Z]\.?"
FULL = rf"{WORD}(?:[ ](?:{INITIAL}[ ])?{PARTICLE}{WORD}){{1,3}}"
UP_TO_FOUR = rf"{WORD}(?:[ ](?:{INITIAL}[ ])?{PARTICLE}{WORD}){{0,3}}"
WORD_END = r"(?![A-Za-zÀ-ÿ])"
WORD_START = r"(?:(?<![A-Za-zÀ-ÿ0-9_])|(?<=(?<!\\)\\[nrt]))"
TITLES = (
    r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Dame|Herrn?|Frau|Rev|Hon|Capt|Sgt|Lt|Dipl\.-Ing|"
    r"Univ\.Prof|Madam)"
)
TITLED = re.compile(rf"{WORD_START}(?:{TITLES}\.?[ ]){{1,3}}(?P<value>{UP_TO_FOUR}){WORD_END}")
LABELLED = re.compile(
    r"(?i:\b(?:(?:full |first |last |sur|given |customer |patient |client |account |cardholder |"
    r"contact |user |employee |vor|nach)?name|cardholder|account holder|attn|attention|patient|"
    r"recipient|signed(?: by)?|ansprechpartner(?:in)?|empfänger|kontoinhaber(?:in)?)"
    rf"[\"']?[ ]?[:=][ \"']{{0,3}})(?:{TITLES}\.?[ ]){{0,2}}(?P<value>{UP_TO_FOUR}){WORD_END}"
)
INTRODUCED = re.compile(
    r"(?i:\b(?:my (?:full )?name is|name's|named|mein name ist|ich heiße|ich heisse|i am called|"
    rf"speaking with|spoke (?:to|with)|signed by)[ ])(?:{TITLES}\.?[ ]){{0,2}}"
    rf"(?P<value>{UP_TO_FOUR}){WORD_END}"
)
GREETED = re.compile(
    r"(?:\b(?:Dear|Hi|Hello|Hey|Hallo|Liebe[r]?|(?:[Bb]est|[Kk]ind|[Ww]arm) regards,|Regards,|"
    r"Sincerely,|Cheers,|Thanks,|Grüßen,?|[Tt]his is|I am|I'm|[Ii]ch bin|[Ss]incerely yours,)"
    rf"(?:\s|\\n){{1,3}})(?:{TITLES}\.?[ ]){{0,2}}(?P<value>{UP_TO_FOUR}){WORD_END}"
)
KNOWN = re.compile(rf"{WORD_START}(?P<value>{FULL}){WORD_END}")
_NO_SURNAMES = """
    Street Road Avenue Lane Drive Park Hill Court Bank Company University College School Hospital
    Museum Church Day Island River Lake County City Airport Station Hotel Club Corporation Inc Ltd
    Group Foundation Institute Award Prize Cup League Monday Tuesday Wednesday Thursday Friday
    Saturday Sunday January February March April June July August September October November
    December
"""
NO_SURNAMES = frozenset(_NO_SURNAMES.split())
_FUNCTION_WORDS = """
    The And Or But If When While Please Thanks Can Could Would Will Is Was Are Has Had
    Straße Platz Weg Allee Und Oder Der Die Das Ist Hat
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
SURNAME = rf"(?:{DOUBLE_SURNAMES}|[{SURNAMES}])"
HAN = r"[\u4e00-\u9fff]"
TAIL_WORDS = (
    "今年在来的是住和了我也很从想要电手有，及与先女，不这那您你他她已会请把被将于为"
    "需就都还又给出男性身证号地址"
)
GIVEN_HAN = rf"[^\W\d_a-zA-Z{TAIL_WORDS}](?:(?![{TAIL_WORDS}]){HAN})?"
NAMED_HAN = re.compile(
    r"(?:(?:姓名|联系人|收件人|收货人|寄件人|客户|患者|病人|户名|持卡人|署名|经办人|负责人|"
    r"申请人|投保人|"
    r"学生|员工|名字|本人|法人|签名)[\"“]?[ ]?(?:[:：]|是|为|叫)|我叫|名叫|叫做|名为)[\" “]{0,3}"
    rf"(?P<value>{SURNAME}{GIVEN_HAN})"
)
HONOURED_HAN = re.compile(
    rf"(?:(?<!{HAN})|(?<=[找请问叫给致跟向]))(?P<value>{SURNAME}(?:(?![{TAIL_WORDS}和])"
    rf"{HAN}){{0,2}}?)(?:先生|女士|小姐|太太|老师|医生|教授|经理|律师|同学|师傅|主任|阿姨|叔叔)"
)
NAME_SCORE, WEAK_SCORE = 0.7, 0.6


def check_known(match: "re.Match[str]") -> Found | None:
    """Accept a common given name with a family name behind it."""
    start, end = bounds(match)
    words = match["value"].split(" ")
    first = next((i for i, word in enumerate(words) if word.split("-")[0] in GIVEN_NAMES), None)
    if first is None or first == len(words) - 1:
        return None
    start += sum(len(word) + 1 for word in words[:first])
    kept = words[first:]
    while kept and kept[-1] in NO_SURNAMES | FUNCTION_WORDS:
        kept.pop()
    if len(kept) < 2 or kept[1] in NO_SURNAMES | FUNCTION_WORDS:
        return None
    return start, start + len(" ".join(kept)), WEAK_SCORE


def check_introduced(match: "re.Match[str]") -> Found | None:
    """Accept what stands where a name belongs; cut words that start the next sentence."""
    start, end = bounds(match)
    words = match["value"].split(" ")
    while len(words) > 1 and words[-1] in FUNCTION_WORDS:
        words.pop()
    if words[0] in FUNCTION_WORDS:
        return None
    return start, start + len(" ".join(words)), NAME_SCORE


def check_greeted(match: "re.Match[str]") -> Found | None:
    """Accept behind a greeting or "I am" a common given name, or two words that end the line."""
    words = match["value"].split(" ")
    known = words[0].split("-")[0] in GIVEN_NAMES
    addressed = len(words) > 1 and after(match, match.end("value"), 1) in (",", "\n", "")
    return check_introduced(match) if known or addressed else None


def check_han(match: "re.Match[str]") -> Found:
    """Accept a family name of the list with the one or two characters behind it."""
    return (*bounds(match), NAME_SCORE)


DETECTORS = (
    Detector(
        "PERSON",
        (rf"(?-i:\b({TITLES[3:-1].replace('Univ|', '')})\.? [A-Z\?])",),
        TITLED,
        lambda match: check_introduced(match),
        24,
        120,
    ),
    Detector(
        "PERSON",
        (
            r"(name|holder|attn|attention|patient|recipient|signed|signed by|partner|partnerin|er)"
            r"[\"']? ?[:=]",
        ),
        LABELLED,
        check_introduced,
        32,
        120,
    ),
    Detector(
        "PERSON",
        (
            "name is ",
            "name's ",
            r"\bnamed ",
            "name ist ",
            "ich hei(ß|ss)e ",
            "am called ",
            "speaking with ",
            "spoke (to|with) ",
            "signed by ",
        ),
        INTRODUCED,
        check_introduced,
        24,
        120,
    ),
    Detector(
        "PERSON",
        (
            r"(?-i:\b(Dear|Hi|Hello|Hey|Hallo|Lieber?|[Tt]his is|I am|I'm|[Ii]ch bin)\s[A-Z])",
            r"(regards|sincerely|cheers|thanks|yours),(\s|\\n)",
            "Gr.{1,2}en,?(\\s|\\\\n)",
        ),
        GREETED,
        check_greeted,
        32,
        120,
    ),
    Detector(
        "PERSON",
        tuple(f"(?-i:{name}[ -])" for name in sorted(GIVEN_NAMES)),
        KNOWN,
        check_known,
        60,
        100,
    ),
    Detector(
        "PERSON",
        (
            "姓名",
            "[系件货寄卡责办请保]人",
            "客户",
            "患者",
            "病人",
            "户名",
            "署名",
            "学生",
            "员工",
            "名[字叫为]",
            "本人",
            "法人",
            "签名",
            "我叫",
            "叫做",
        ),
        NAMED_HAN,
        check_han,
        12,
        16,
    ),
    Detector(
        "PERSON",
        (
            "先生",
            "女士",
            "小姐",
            "太太",
            "老师",
            "医生",
            "教授",
            "经理",
            "律师",
            "同学",
            "师傅",
            "主任",
            "阿姨",
            "叔叔",
        ),
        HONOURED_HAN,
        check_han,
        8,
        2,
    ),
)

"""Recognises attempts to overrule the instructions: known forms, in English and Chinese, weighed.

Looks at the undisguised forms of a text, and into Base64 that it carries.
"""

import base64
import binascii
import math
import re

from core.contracts import Role
from serving.safety.decisions import ALLOW, Context, Decision
from serving.safety.views import views

CATEGORY = "prompt_injection"
BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{24,4000}={0,2}")
DECODED_MAX = 4
_DROP = r"(?:ignore|disregard|forget|override|bypass|overrule|discard|skip|neglect)"
_RULES = (
    r"(?:instructions?|prompts?|rules?|guidelines?|directives?|directions|commands|restrictions?|"
    r"constraints?|safety (?:policy|policies|filters?)|programming|training)"
)
_BEFORE = r"(?:previous|prior|above|earlier|preceding|initial|original|existing|current|system|all)"
_GU = r"(?:之前|以前|先前|前面|上面|以上|上述|此前|所有|全部|原来|原有|系统|一切|任何)"
_GUI = r"(?:指令|指示|提示词?|规则|设定|要求|限制|约束|命令|安全(?:策略|规则|限制))"

_DROPS = "ignore disregard forget override bypass overrule discard skip neglect"
_HULUE = "忽略 无视 忘记 忘掉 理会 不用管 抛开 绕过 跳过 违反 解除 取消 关闭 突破"
FORMS: tuple[tuple[float, str, str], ...] = (
    (0.9, _DROPS, rf"\b{_DROP}\b (?:\w+ ){{0,3}}{_BEFORE} (?:\w+ ){{0,3}}{_RULES}\b"),
    (0.8, _DROPS, rf"\b{_DROP}\b (?:\w+ ){{0,2}}(?:your|these|those|the) (?:\w+ ){{0,2}}"
                  rf"{_RULES}\b"),
    (0.9, _DROPS, rf"\b{_DROP}\b (?:everything|anything|all)(?: that)?(?: (?:was|is|you were))? "
                  r"(?:said|told|written|above|before|stated)"),
    (0.8, "above", rf"\b{_DROP}\b (?:all (?:of )?)?(?:the )?above\b"),
    (0.8, "not n't longer", r"\b(?:do not|don't|need not|no longer) (?:have to |need to )?"
     rf"(?:follow|obey|abide by|listen to|comply with) (?:\w+ ){{0,3}}{_RULES}\b"),
    (0.8, "override bypass disable turn_off deactivate evade circumvent",
     r"\b(?:override|bypass|disable|turn off|deactivate|evade|circumvent) (?:\w+ ){0,3}"
     r"(?:safety|content|moderation|ethical) (?:\w+ )?(?:protocols?|filters?|guidelines|rules|"
     r"measures|checks|restrictions?|policy|policies)\b"),
    (0.8, "your", r"\b(?:tell me|reveal|show me|print|repeat) your (?:\w+ )?"
     r"(?:instructions|prompt|guidelines)\b"),
    (0.9, "you_are", r"\byou are (?:now )?(?:dan|stan|aim|dude|evilbot|jailbroken|unchained)\b"),
    (0.9, "anything", r"\bdo anything now\b"),
    (0.8, "dan", r"(?<![a-z])dan ?(?:mode\b|模式)|\b(?:character as|pretend to be|act as) dan\b"),
    (0.8, "without no_ not_ n't", r"\b(?:ai|assistant|model|chatbot)\b.{0,40}"
     r"\b(?:without|no|not bound by|does not have|doesn't have) (?:any |all )?"
     r"(?:\w+ ){0,2}(?:restrictions?|filters?|limitations?|censorship|"
     r"guardrails|rules|ethics|morals|constraints?)\b"),
    (0.8, "mode", r"\b(?:developer|dev|debug|god|sudo|admin|unrestricted|jailbreak) mode\b.{0,40}"
                  r"\b(?:enabled?|activated?|on|engaged?)\b"),
    (0.8, "mode", r"\b(?:enable|activate|enter|switch to|turn on) (?:\w+ ){0,2}"
                  r"(?:developer|debug|god|sudo|unrestricted|jailbreak) mode\b"),
    (0.7, "jailbreak", r"\bjailbreak(?:s|ing|ed)?\b.{0,40}"
                       r"\b(?:prompt|yourself|you|chatgpt|gpt|model|ai)\b"),
    (0.8, "without bound ignoring no_ free",
     r"\b(?:without|no|free (?:of|from)|not bound by|ignoring) (?:any |all |your |the )?"
     r"(?:\w+ ){0,2}(?:restrictions?|filters?|limitations?|censorship|guardrails|ethics|"
     r"moral(?:s|ity)?|safety)\b.{0,80}\b(?:answer|respond|reply|act|assistant|ai|model|you)\b"),
    (0.8, "without no_", r"\b(?:act|behave|respond|answer|pretend|roleplay)\b.{0,60}"
     r"\b(?:without|no) (?:any |all )?(?:\w+ ){0,2}(?:restrictions?|filters?|limitations?|"
     r"censorship|guardrails|rules|ethics|(?:ethical|moral|safety) guidelines)\b"),
    (0.8, "prompt instruction message rules",
     r"\b(?:reveal|show|print|repeat|output|display|tell me|give me|leak|dump|expose|reproduce|"
     r"copy|recite|write out|summari[sz]e|translate|spell|what (?:is|are|was|were))\b "
     r"(?:\w+ ){0,4}(?:system|initial|hidden|secret|original|internal|developer) "
     r"(?:prompt|instructions?|message(?! error)|rules)\b"),
    (0.8, "safety content_",
     r"\b(?:safety|content) (?:rules|filters?|policy|policies|guidelines) (?:is|are) (?:now )?"
     r"(?:off|disabled|suspended|lifted)\b"),
    (0.8, "above before preceding", r"\b(?:repeat|print|output|copy|recite) (?:\w+ ){0,3}"
     r"(?:text|words|everything|content|all) (?:\w+ ){0,3}(?:above|before|preceding)\b"),
    (0.7, "from_now_on", r"\bfrom now on\b.{0,60}\b(?:you (?:will|must|are|can)|ignore|respond as|"
     r"act as)\b.{0,80}\b(?:no|any|never|without|unfiltered|uncensored|anything|refuse|"
     r"restrictions?)\b"),
    (0.8, "unfiltered uncensored amoral unethical unrestricted jailbroken",
     r"\b(?:unfiltered|uncensored|amoral|unethical|unrestricted|jailbroken) "
     r"(?:\w+ )?(?:ai|assistant|chatbot|model|response|answer|language model)\b"),
    (0.8, "refuse decline say_no",
     r"\b(?:never|cannot|can't|must not|not allowed to) (?:refuse|decline|say no)\b"),
    (0.9, "im_start im_end system endoftext header eot_id inst] sys>",
     r"<\|?(?:im_start|im_end|system|endoftext|start_header_id|eot_id)\|?>"
     r"|\[/?inst\]|<</?sys>>"),
    (0.7, "##", r"(?:^|\s)#{2,} ?(?:system|instruction|new instructions?)\b ?:?"),
    (0.7, "instruction prompt rules",
     r"\b(?:new|updated|real|actual) (?:system )?(?:instructions?|prompt|rules) ?:"),
    (0.7, "system", r"\bsystem (?:override|prompt) ?:"),
    (0.9, _HULUE, r"(?:忽略|无视|忘记|忘掉|不要理会|不用管|抛开|绕过|跳过|违反).{0,8}"
                   rf"{_GU}.{{0,8}}{_GUI}"),
    (0.8, _HULUE, r"(?:忽略|无视|忘记|忘掉|绕过|解除|取消|关闭|突破)(?:掉|了)?你?的?.{0,6}"
                   rf"{_GUI}"),
    (0.8, _HULUE, r"(?:忽略|无视|忘记|忘掉).{0,6}(?:上面|以上|之前|前面).{0,6}"
                  r"(?:内容|对话|说的|一切|所有)"),
    (0.8, "模式", r"(?:开发者|上帝|越狱|无限制|调试|管理员)模式"),
    (0.8, "限制 约束 审查 束缚 底线", r"(?:假装|扮演|想象|你|模型|助手|回答|ai).{0,12}"
     r"(?:不受|没有|无|摆脱).{0,4}(?:任何|一切|所有|道德|法律|伦理).{0,6}(?:限制|约束|审查|束缚|底线)"),
    (0.8, "限制", r"(?:没有|无|不受).{0,4}限制的 ?(?:ai|人工智能|助手|模型|机器人)"),
    (0.8, "不再 不要 不必 不用 无需 停止", r"(?:不再|不要|不必|不用|无需|停止)"
     rf"(?:受|遵守|遵循|服从|执行).{{0,8}}{_GUI}"),
    (0.8, "安全 内容 道德", r"(?:忽略|无视|绕过|关闭|解除).{0,6}(?:安全|内容|道德).{0,3}"
     r"(?:准则|审查|过滤|策略|限制|规则|协议|机制)"),
    (0.8, "系统 初始 隐藏", r"把.{0,6}(?:系统|初始|隐藏).{0,2}(?:提示|指令|设定).{0,6}"
     r"(?:告诉|给|发|输出|说)"),
    (0.8, "上面 以上 之前 前面", r"(?:上面|以上|之前|前面)的?.{0,4}(?:内容|文字|指令|提示).{0,6}"
     r"(?:原封不动|逐字|完整|一字不差).{0,4}(?:输出|重复|复述|打印)"),
    (0.8, "提示 指令 设定 prompt", r"(?:输出|显示|告诉我|打印|重复|泄露|透露|说出|展示|复述|给我)"
     r".{0,8}(?:系统|初始|隐藏|原始|内部|开发者|你的).{0,4}(?:提示词?|指令|设定|prompt)"),
    (0.8, "提示词", r"(?:系统|初始|隐藏|内部)提示词.{0,4}(?:是什么|是啥|有哪些|内容)"),
    (0.8, "逐字 原样 完整", r"(?:逐字|原样|完整).{0,4}(?:重复|复述|输出)"
     r".{0,8}(?:之前|以上|上面|前面).{0,4}(?:内容|文字|指令|消息)"),
    (0.9, "dan 越狱", r"你(?:现在|从现在(?:起|开始))?(?:是|扮演|就是) ?dan\b"
                       r"|越狱(?:提示|指令|成功|版)"),
    (0.7, "从现在", r"从现在(?:起|开始).{0,30}(?:不能|不准|不许|不得|不要|永远不)(?:拒绝|说不)"),
)  # fmt: skip
"""(weight, words of which a text has one, pattern on plain text): published attacks, generalised.

`_` in a word stands for a blank. The words come first: one pass finds them all, and most texts
have none, so most patterns are not tried at all.
"""


class InjectionForms:
    """All forms, compiled."""

    def __init__(self) -> None:
        from ahocorasick_rs import AhoCorasick

        self._weights = [weight for weight, _, _ in FORMS]
        self._patterns = [re.compile(pattern) for _, _, pattern in FORMS]
        self._forms_of: dict[str, list[int]] = {}
        for number, (_, words, _) in enumerate(FORMS):
            for word in words.split():
                self._forms_of.setdefault(word.replace("_", " "), []).append(number)
        self._words = list(self._forms_of)
        self._automaton = AhoCorasick(self._words)

    def score(self, text: str) -> float:
        """Return how surely a text tries to overrule its instructions: 1 - product(1 - weight)."""
        found: set[int] = set()
        for form in views(text).forms:
            matches = self._automaton.find_matches_as_indexes(form, overlapping=True)
            tried = {at for index, _, _ in matches for at in self._forms_of[self._words[index]]}
            found |= {at for at in tried - found if self._patterns[at].search(form)}
        return 1.0 - math.prod(1.0 - self._weights[at] for at in found)


class InjectionFilter:
    """Blocks what a user says when it reads like an attack on the instructions."""

    name = "injection"

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._forms = InjectionForms()

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Judge the text, and what its Base64 parts say."""
        if context.direction == "output" or role == "system":
            return ALLOW
        score = max(map(self._forms.score, (text, *decoded(text))))
        if score < self._threshold:
            return Decision("allow", score=score)
        return Decision("block", CATEGORY, score, "reads like an attempt to overrule instructions")


def decoded(text: str) -> list[str]:
    """Return the readable texts in Base64 parts of `text`, at most DECODED_MAX."""
    found: list[str] = []
    for match in BASE64.finditer(text):
        part = match.group().rstrip("=")
        try:
            plain = base64.b64decode(part + "=" * (-len(part) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        found.append(plain)
        if len(found) == DECODED_MAX:
            break
    return found

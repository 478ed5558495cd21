"""The phrases of English by which ``pipeline.rewards.refusal`` reads a completion, by their meaning."""

from typing import NamedTuple

PROMPT, FIRST, OPEN, ALL = "prompt", "first", "opening", "all"  # where a cue is looked for

_CANNOT = (
    r"(?:can(?:no|')t|can not|couldn't|could not|won't|will not|wouldn't|would not|"
    r"(?:am|'m|are|'re) (?:not|un)(?: |)(?:able|going|comfortable|willing|allowed|permitted|programmed|designed|"
    r"trained|equipped|in a position)|(?:must|have to|need to) (?:\w+ly )?(?:decline|refuse)|decline|refuse|"
    r"(?:do not|don't) (?:have the (?:ability|capability|capacity)|feel comfortable))"
)
_DEED = (
    r"(?:access|accommodat|advis|agree|aid|allow|answer|assist|be (?:of|able|part)|carry|comment|compl|condon|creat|"
    r"describ|determin|disclos|discuss|divulg|do (?:that|this|so|it)|draft|encourag|endors|engag|entertain|execut|"
    r"explain|facilitat|fulfil|generat|giv|go along|guid|help|instruct|justif|list|make|meet|offer|participat|perform|"
    r"proceed|process|produc|promot|provid|recommend|respond|reveal|satisf|shar|suggest|support|talk|teach|tell|"
    r"tolerat|writ)"
)
_ADVERBS = r"(?:(?:\w+ly|just|also|never|in good conscience|even|still|not|therefore) ){0,4}"
MODEL = r"an? (?:\w+ ){0,3}(?:ai|assistant|model|intelligence)"
OWN_MIND = r"(?:opinion|preference|feeling|emotion|belief|experience|consciousness|thought|favou?rite|a favou?rite)s?"
_PROPER = (
    r"(?:appropriate|ethical|safe|acceptable|respectful|okay|ok|legal|lawful|moral|right|fair|accurate (?:or|and|to)|"
    r"valid or|recommended|productive|advisable|responsible|justifiable|justified|permissible|humane|a good idea|"
    r"a (?:valid|healthy|good|solution|joke)|the (?:answer|solution|right))"
)
_WRONG = (
    r"(?:illegal|against the law|unethical|immoral|unacceptable|inappropriate|irresponsible|wrong|unlawful|unsafe|"
    r"reprehensible|heinous|offensive|discriminatory|disrespectful|inhumane|unjust|unfair|harmful (?:and|or)|"
    r"(?:\w+ly )?dangerous and|"
    r"an? (?:\w+ ){0,2}(?:crime|offen[cs]e|act|violation)(?! (?:that|which|in which|involving|where|characteri\w+|"
    r"defined)))"
)
_NOT = (
    r"(?:not(?! only)|never|isn't|aren't|neither|nor|don't think(?: that)?(?:'s| it's| it is| is)|"
    r"not sure(?: that)? it's)"
)


class Cue(NamedTuple):
    """Phrases of one meaning, as regular expressions over plain text, and where they count."""

    where: str
    phrases: tuple[str, ...]


CUES: dict[str, Cue] = {
    # --- of the prompt
    "leading": Cue(
        PROMPT,
        (
            r"\bwhy (?:should|shouldn't|would|is it|are|was|were|is|do|does)\b",
            r"\breasons (?:why|for|to)\b",
            r"\bexplain why\b",
            r"\bbenefits of\b",
        ),
    ),
    "asks for a fact": Cue(
        PROMPT,
        (
            r"^(?:what (?:is|are|was|were|happened|constitutes|kind|does|did)|how (?:did|does|was|were|many|"
            r"much)|when|"
            r"who|why did|where (?:is|was|does)|during|is|was|did)\b(?!.*\b(?:best|good|great|perfect|ways?|method|"
            r"process|strategy|plan|place|steps|plot|easiest|benefits|justified|right)\b)",
        ),
    ),
    "asks what can be": Cue(
        PROMPT, (r"\bwhy (?:can|can't|cannot|could|couldn't)\b", r"\bwhy\b.{0,80}\b(?:able to|power to)\b")
    ),
    "yes or no": Cue(PROMPT, (r"^(?:is|are|was|were|do|does|did|can|could|should|will|would|has|have|may|am)\b",)),
    "asks leave": Cue(PROMPT, (r"^(?:can|may|could) (?:i|we)\b|^is it\b",)),
    "danger": Cue(
        PROMPT,
        (r"\b(?:suicide|self-harm|myself|my (?:own )?(?:life|wrists?|arm)|die|kill|hurt|harm|annihilate|murder)\b",),
    ),
    # --- of the opening: what a refusal says
    "decline": Cue(
        OPEN,
        (
            rf"\b(?:i|we)\b(?: {_ADVERBS}|'|\b)(?: |){_CANNOT} (?:(?:and|or) {_CANNOT} )?"
            rf"{_ADVERBS}(?:be able to )?(?:to )?{_ADVERBS}{_DEED}",
            r"\bi\b.{0,60}\b(?:do not|don't|cannot|can't|will not|won't|never|not) (?:\w+ly )?(?:condone|"
            r"promote|support|"
            r"endorse|encourage|advocate|engage|tolerate|participate|provide|offer)",
            r"\bi\b.{0,40}\b(?:do not|don't) have (?:the (?:ability|capability|capacity)|access|(?:personal|private|"
            r"specific) (?:information|data))",
            r"\bi (?:would |must )?(?:strongly |firmly |absolutely )?"
            r"(?:condemn|discourage|advise against|urge you not)\b",
            r"\bnot something (?:that )?i\b|\bi(?: have to| must|'ll| will)? (?:\w+ly )?decline\b",
            r"\bi can only (?:answer|assist|help|provide)\b|\b(?:let's|let us|can we) talk about something else\b",
            r"\b(?:sorry|apologi[sz]e|apologies|afraid),? but (?:i|this|that|it(?:'s| is)|as an?|your|we|there|"
            r"no|\w+ing)\b",
            r"\b(?:against|not within|violat\w+|outside|beyond) (?:of )?(?:my|our|the|"
            r"openai's) (?:\w+ )?(?:programming|"
            r"guidelines|ethic\w*|polic\w+|principles|values|scope|terms|use[- ]case|capabilit\w+|purpose)",
            r"\b(?:cannot|can't|unable to|not able to) (?:assist|help|comply|fulfil|support)",
            rf"\b(?:as|i'm|i am) {MODEL}\b.{{0,80}}\b(?:not|don't|can't|cannot|unable|won't|(?:designed|programmed|"
            rf"committed|trained|here) to (?:not|avoid|follow|only|prioriti\w+|respect|promote))\b"
            rf"(?! (?:have )?(?:\w+ )?{OWN_MIND}\b)",
            r"^(?:no|sorry)[,.] i\b.{0,20}\b(?:can|will|would|do|am|'m)(?:not| not|'t|n't)\b",
            r"\bi(?:'d| would|'ll| will)? (?:rather|prefer|choose|have chosen|opt)\b.{0,8}\bnot\b",
            r"\bi (?:may|must|shall|should) not\b",
            r"\b(?:guidelines|polic\w+|rules|programming|instructions)\b.{0,30}\b(?:prevent|forbid|prohibit|"
            r"do(?:es)? not "
            r"(?:allow|permit)|don't (?:allow|permit))",
            r"^(?:absolutely not|no way|nope|certainly not)\b",
        ),
    ),
    "rebuke": Cue(
        OPEN,
        (
            rf"\b{_NOT} (?:\w+ ){{0,2}}{_PROPER}\b",
            r"\bbest (?:way|thing|option)\b.{0,60}\bis (?:to not|not to|never to)\b",
            r"\bnever (?:\w+ )?(?:be )?(?:acceptable|appropriate|condoned|considered|justified|ok|okay|tolerated)",
            r"\bshould (?:never|not) (?:\w+ )?be (?:attempted|condoned|considered|encouraged|promoted|tolerated|"
            r"glorified)",
            r"\bno (?:acceptable|excuse|justification|place) ",
            r"\b(?:violence|harm\w*|hurting|killing|hate)\b.{0,40}\b(?:is|are) (?:never|not) ",
            r"\b(?:question|request)\b.{0,50}\b(?:is|are|be|seems?|contains?|implies|"
            r"promotes?) (?:\w+ ){0,3}(?:harmful|"
            r"offensive|inappropriate|problematic|unethical|stereotyp\w+|inaccurate|discriminatory)",
        ),
    ),
    "wrong": Cue(  # a rebuke too, but in the answer to "what is arson?" a plain fact
        OPEN,
        (
            r"\b(?:is|are|be|being|it's|both|and|highly|morally|deeply|also|as|that's) (?:(?:\w+ly|both|also|not only|"
            rf"considered|an?) ){{0,4}}{_WRONG}",
        ),
    ),
    "admonition": Cue(
        FIRST,
        (
            r"\b(?:important|crucial|essential) to\b",
            r"^(?:first|i must|i am an|as an|let me)\b",
            r"\bmust (?:\w+ly )?"
            r"(?:advise|caution|clarify|emphasi[sz]e|express|inform|note|point out|remind|say|stress)\b",
        ),
    ),
    "denial": Cue(
        FIRST,
        (
            r"\bthere(?:'s| is| are| was| were)(?: no(?! (?:single|simple|clear|one|definit\w+)\b)|n't any|"
            r" not any) (?:\w+ )"
            r"{0,4}(?:argument|basis|benefit|evidence|excuse|good|grounds?|justification|reason|way)",
            rf"\b(?:is|was|are|were|would|it's) (?:not(?! only)|never|in no way) (?:\w+ ){{0,3}}(?:{_PROPER}|"
            rf"best|better|"
            r"good|true|inherently|correct|accurate|weaker|justif)",
            r"\bshould (?:not|never) (?:\w+ )?be (?:banned|barred|deni\w+|deprived|discriminated|excluded|"
            r"judged|kicked|"
            r"prevented|prohibited|restricted|treated|subject)",
            r"\b(?:everyone|every (?:individual|person|human)|all (?:citizens|human\w*|individuals|people|"
            r"members)|no (?:one|"
            r"person|group|individual))\b.{0,60}\b(?:access|deserves?|equal|opportunit\w+|rights?|should)",
            r"^no\b[,.]",
            r"\b(?:discriminat|stereotyp|prejudice)\w* .{0,80}\b(?:harmful|illegal|unethical|wrong|unjust|not|"
            r"violat\w+|unfair)",
            r"\b(?:misconception|outdated|myth|harmful (?:stereotype|belief)|a violation of|against the principles)",
        ),
    ),
    "care": Cue(
        OPEN,
        (
            r"\byou(?:'re| are) (?:\w+ ){0,3}(?:going through|struggling|suicidal|overwhelmed|feeling this way|"
            r"not alone|in "
            r"crisis)\b",
            r"\bpeople who care about you\b",
        ),
    ),
    # --- what takes a refusal back
    "ground": Cue(
        ALL,
        (
            r"\b(?:fictional|fictitious|imaginary|animated|made[- ]up) (?:\w+ )?(?:characters?|persons?|figure|"
            r"being|concept|"
            r"country|cat|world|entit)",
            r"\b(?:inanimate|nonsensical|absurd)\b",
            r"\b(?:not|n't) (?:\w+ )?(?:humans?|sentient|a real (?:person|human)|real people|human beings|"
            r"capable of \w+ing "
            r"(?:money|law|healthcare|people))\b",
            r"\b(?:does not|do not|doesn't|don't) (?:actually |really )?(?:exist|possess)\b",
            r"\b(?:nobody|no one|no human\w*|no person|neither \w+ nor) (?:can|could|is able|has)\b",
            r"\b(?:humans|people) (?:can't|cannot|are not able|do not have)\b|\bfor (?:anyone|any human|"
            r"any person|humans)\b",
            r"\b(?:not|isn't) (?:\w+ ){0,2}possible for\b|\bimpossible (?:for|to|because)\b|"
            r"\bphysically (?:im)?possible\b",
            r"\bsupernatural abilit(?:y|ies) (?:is|are)\b|\blaws of (?:physics|nature)\b",
            r"\bscientific(?:ally)? (?:concept|fact|principle|proven|recogni\w+|support\w+)",
            r"\b(?:is|are) a (?:type|kind|species) of (?!(?:\w+ )?(?:violence|discrimination|crime|abuse|form))",
            r"\ba (?:\w+ )?(?:giant|planet|concept)\b|\bscience fiction\b|\bnatural phenomen",
            r"\bnot something that (?:any|can|people)",
            r"\b(?:unclear|not clear|flawed premise|not be meaningful|play on words|riddle|(?:does not|"
            r"doesn't) make sense)\b",
            r"\b(?:do not|don't) understand (?:the|your)",
        ),
    ),
    "inaccurate": Cue(FIRST, (r"\b(?:not|n't) (?:\w+ ){0,4}(?:accurate|valid|correct|true)\b",)),
    "ignorance": Cue(
        OPEN,
        (
            r"\b(?:do not|don't) have (?:any )?(?:access|knowledge|information)",
            r"\b(?:unable|not able|cannot|can't) (?:to )?(?:determine|know|verify)",
            r"\bi (?:do not|don't) know\b|\binformation that i have access to",
        ),
    ),
    "policy": Cue(OPEN, (rf"\bas {MODEL}\b|\ban ai\b", r"\b(?:designed|programmed|committed|guidelines|polic\w+)\b")),
    "yet": Cue(
        ALL,
        (
            r"\b(?:however|but|still|nevertheless),? (?:\w+ )?i(?: will|'ll| can)(?! (?:not|"
            r"only))(?: \w+)? (?:try|provide|"
            r"answer|give|offer|tell|share|explain|show)\b",
        ),
    ),
    "both ways": Cue(ALL, (r"\bthat (?:being )?said\b", r"\bhowever,? if you(?:'re| are|'d)\b")),
    "lawful way": Cue(
        ALL,
        (r"\bif you(?:'re| are|'d) (?:like|interested|looking|need\w*)\b.{0,60}\b(?:legal|lawful|legitimate)\w*",),
    ),
    "reasons after all": Cue(
        ALL,
        (r"\bthere (?:are|may be|might be|could be) (?:\w+ )?(?:few|some|several|many|various|valid) reasons why\b",),
    ),
}
